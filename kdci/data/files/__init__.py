"""Images in files of any kind: found, read, decoded."""
