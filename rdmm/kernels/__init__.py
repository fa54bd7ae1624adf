"""Compiled kernels (numba), and reductions over pairs of points (KeOps). No other package imports these two.

Each kernel has a twin in torch, which serves other devices; tests compare the two.
``available`` tells which tensors the kernels serve, and sets their threads.
"""
