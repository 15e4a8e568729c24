"""Plain baselines: the six methods as their public implementations run them.

Written for this project from what docs/methods.md tells of the methods, to be timed beside the
project's own path: float32, contiguous, BatchNorm hooks that fire in every forward pass of the
teacher, a teacher whose weights receive gradients that nobody asks for, images in PNG files that a
``DataLoader`` reads, augmentation image by image, torch's optimisers. The networks have the same
layers as the project's, and a test holds every loss to the project's on the same input.
"""
