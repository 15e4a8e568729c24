"""DVC's graph of stages with its status, and the graph as it is now."""
