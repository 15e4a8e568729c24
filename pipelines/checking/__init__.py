"""What is looked at before, after and instead of a run: params, data, estimate, diagnosis."""
