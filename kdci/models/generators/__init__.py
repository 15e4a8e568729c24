"""What makes images, and what is trained beside it."""
