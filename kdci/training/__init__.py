"""The loops that train networks, and what they compute with; knows no method."""
