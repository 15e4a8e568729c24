"""The params tree: typed, validated once, without torch; the file and what is wrong with it."""
