"""Pairs made from nothing, by a seed: the shapes of the RDMM paper (``scenes``), random anatomies (``contrasts``), and scenes whose true
map is known: a lung in a rigid ``cage``, and an organ that is ``sliding`` along a wall, both made of ``formulas``.

``random_maps`` deforms anatomies; ``label_images`` makes images of label maps.
"""
