"""Unlabelled images that sampling-based methods choose from."""
