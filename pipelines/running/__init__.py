"""Stages as processes: started, followed, stopped and judged, side by side on one machine."""
