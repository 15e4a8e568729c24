"""The report in words and tables."""
