"""`kdci import-teacher`: a user's own checkpoint becomes a teacher like any other."""
