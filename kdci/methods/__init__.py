"""Data-free distillation methods: one a file, all behind ``base``."""
