"""Short measurements of what the steps of training and synthesis take: seconds and memory."""
