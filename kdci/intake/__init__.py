"""Intake of a user's own teacher: read in quarantine, mapped to a backbone, checked."""
