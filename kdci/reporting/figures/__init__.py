"""Figures of the report, as PNG."""
