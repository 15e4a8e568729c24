"""Substitution images for distillation: one method per file, all behind ``base``."""
