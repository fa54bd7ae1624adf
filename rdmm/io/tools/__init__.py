"""Transforms in the files of other tools, one module for each (``itk``: a package). ``rdmm.io.transforms`` alone chooses between them."""
