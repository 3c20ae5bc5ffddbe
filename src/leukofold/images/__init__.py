"""From image files to the arrays that are trained on: reading, denoising, the cache."""
