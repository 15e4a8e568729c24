"""params.yaml as its user edits it: presets, edits, values that DVC wants spelled out."""
