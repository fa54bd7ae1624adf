"""What networks are trained on: sources of images, splits, pairs by number."""
