"""Pairs made from nothing, by a seed: the shapes of the RDMM paper (``scenes``) and random anatomies (``contrasts``).

``random_maps`` deforms them; ``label_images`` makes images of label maps.
"""
