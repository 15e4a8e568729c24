"""Images: original datasets, open-world pools, augmentation and the image bank."""
