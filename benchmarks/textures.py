"""Synthetic pairs of the same appearance at every size."""

from __future__ import annotations

import numpy as np
import torch

from rdmm.data.synthetic.random_maps import random_diffeomorphism, smooth_noise
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image

EDGE = 256.0
"""Longest edge of the images, mm."""


def textures(shape: tuple[int, ...], seed: int = 0) -> tuple[Image, Image]:
    """A random texture in a ball, and the same texture moved by a random diffeomorphism."""
    voxel = EDGE / max(shape)
    grid = Grid(shape, np.diag([voxel] * len(shape) + [1.0]))
    rng = np.random.default_rng(seed)
    x = grid.identity(torch.zeros(1))
    middle = torch.tensor(grid.extent).view(1, -1, *(1,) * len(shape)) / 2
    ball = torch.sigmoid((0.4 - (x - middle).square().sum(1, keepdim=True).sqrt()) / 0.01)
    image = Image(ball * (2 + sum(smooth_noise(rng, 1, grid, sigma) for sigma in (0.015, 0.05))), grid)
    return image, image.moved_by(random_diffeomorphism(rng, grid, 0.02, 0.1))
