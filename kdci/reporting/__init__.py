"""The report: what was measured, with its uncertainty, in tables, words and figures.

Everything here reads artifacts that are in place and computes nothing on a model, so it
loads neither torch nor the original data.
"""
