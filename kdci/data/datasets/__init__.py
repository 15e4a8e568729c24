"""Original, labelled datasets, which the teacher and `evaluate` alone open."""
