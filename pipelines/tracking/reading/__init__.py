"""The files' side of tracking."""
