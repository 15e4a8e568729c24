"""Tools of methods that make images: what they read of a teacher, remember and play."""
