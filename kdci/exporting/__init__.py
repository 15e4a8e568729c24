"""A student outside of the project: as a graph other programs run, with a card that tells of it."""
