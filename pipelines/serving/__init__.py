"""What leaves the project: exports, served models, the registry's champion."""
