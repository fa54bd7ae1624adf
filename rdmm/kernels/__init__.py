"""Compiled kernels (numba), and reductions over pairs of points (KeOps). No other package imports numba or KeOps.

The same function in torch serves other devices; tests compare the two.
``available`` tells which tensors the kernels can be used for, and sets the number of threads.
"""
