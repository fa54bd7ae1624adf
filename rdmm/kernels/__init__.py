"""Compiled kernels (numba) and reductions over pairs of points (KeOps). Each has a twin in torch that tests compare it with.

No other package imports numba or pykeops."""
