"""DVC's graph of stages with its status, and what the params plan."""
