"""Transforms in the files of other tools, one module for each. ``rdmm.io.transforms`` alone chooses between them."""
