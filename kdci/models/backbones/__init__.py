"""Classifiers: teachers and students."""
