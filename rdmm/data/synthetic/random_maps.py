"""Random smooth fields, diffeomorphisms and affine maps."""

from __future__ import annotations

import numpy as np
import torch

from rdmm.dynamics.svf import exponential
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.grid import Grid
from rdmm.spatial.ops import resize
from rdmm.spatial.transform import Affine, Dense
from rdmm.types import Tensor


def smooth_noise(rng: np.random.Generator, channels: int, grid: Grid, sigma: float) -> Tensor:
    """Smooth random fields (1, channels, *s) with mean square 1. ``sigma`` is the smoothness, in domain units."""
    coarse = grid.resized([min(n, max(4, round(2 * e / sigma) + 1)) for n, e in zip(grid.shape, grid.extent, strict=True)])
    x = torch.from_numpy(rng.standard_normal((1, channels, *coarse.shape), dtype=np.float32))
    x = gaussian(x, sigma, coarse)
    x = x / x.square().flatten(2).mean(2).sqrt().clamp_min(1e-12).view(1, channels, *(1,) * grid.ndim)
    return resize(x, grid.shape)


def random_diffeomorphism(rng: np.random.Generator, grid: Grid, size: float, sigma: float) -> Dense:
    """The flow of a random stationary velocity. ``size`` is its root mean square along each axis, in domain units."""
    coarse = grid.scaled(0.5)
    return Dense(exponential(size * smooth_noise(rng, grid.ndim, coarse, sigma), coarse, 16), coarse)


def random_affine(rng: np.random.Generator, grid: Grid, turn: float, stretch: float, shift: float) -> Affine:
    """A random affine map about the center of the grid.

    Args:
        turn, stretch, shift: standard deviations of its rotation (radians), of its log-scales and shear, and of its translation
            (domain units).
    """
    d = grid.ndim
    center = torch.tensor(grid.extent) / 2
    skew = turn * rng.standard_normal((d, d))
    symmetric = stretch * rng.standard_normal((d, d))
    generator = torch.from_numpy((skew - skew.T + symmetric + symmetric.T) / 2).float()
    linear = torch.linalg.matrix_exp(generator)
    matrix = torch.eye(d + 1)
    matrix[:d, :d] = linear
    matrix[:d, d] = center - linear @ center + shift * torch.from_numpy(rng.standard_normal(d)).float()
    return Affine(matrix)
