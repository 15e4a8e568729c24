"""Where things lie, and whether they are whole: artifacts, checkpoints, metrics, layout."""
