"""The commands of `kdci`, by what they are about."""
