"""Data-free distillation methods, one a file; `kdci.substitution.registry` finds them here."""
