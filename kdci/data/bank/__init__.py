"""Substitution images: where they are kept, and how batches are drawn and augmented."""
