"""Pairs made from nothing: the shapes of the RDMM paper, random anatomies, images of label maps."""
