"""Random variations of images: smooth deformations, affine maps, intensities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rdmm.dynamics import exponential
from rdmm.grid import Grid
from rdmm.ops import resize
from rdmm.shape import Image
from rdmm.smoother import gaussian
from rdmm.transform import Affine, Dense, composed
from rdmm.types import ConfigError, Tensor


def noise(rng: np.random.Generator, channels: int, grid: Grid, sigma: float) -> Tensor:
    """Smooth random fields (1, channels, *s) of mean square 1, sigma in domain units."""
    coarse = grid.resized([min(n, max(4, round(2 * e / sigma) + 1)) for n, e in zip(grid.shape, grid.extent, strict=True)])
    x = torch.from_numpy(rng.standard_normal((1, channels, *coarse.shape), dtype=np.float32))
    x = gaussian(x, sigma, coarse)
    x = x / x.square().flatten(2).mean(2).sqrt().clamp_min(1e-12).view(1, channels, *(1,) * grid.ndim)
    return resize(x, grid.shape)


def diffeomorphism(rng: np.random.Generator, grid: Grid, size: float, sigma: float) -> Dense:
    """The flow of a random stationary velocity: ``size`` its root mean square along each axis, in domain units."""
    coarse = grid.scaled(0.5)
    return Dense(exponential(size * noise(rng, grid.ndim, coarse, sigma), coarse, 16), coarse)


def affine(rng: np.random.Generator, grid: Grid, turn: float, stretch: float, shift: float) -> Affine:
    """A random affine map about the middle: standard deviations of its angles (radians), log-scales and shear, and shift."""
    d = grid.ndim
    middle = torch.tensor(grid.extent) / 2
    skew = turn * rng.standard_normal((d, d))
    symmetric = stretch * rng.standard_normal((d, d))
    generator = torch.from_numpy((skew - skew.T + symmetric + symmetric.T) / 2).float()
    linear = torch.linalg.matrix_exp(generator)
    matrix = torch.eye(d + 1)
    matrix[:d, :d] = linear
    matrix[:d, d] = middle - linear @ middle + shift * torch.from_numpy(rng.standard_normal(d)).float()
    return Affine(matrix)


@dataclass(frozen=True)
class Augment:
    """A random variation of an image and its labels; every number is a standard deviation, 0 leaves its variation out.

    Args:
        deformation, width: size and smoothness (sigma) of a random diffeomorphism, in domain units.
        turn, stretch, shift: of an affine map: radians, log-scale, domain units.
        gamma: of the logarithm of the exponent of intensities (0 to 1).
        noise: of intensities.
    """

    deformation: float = 0.01
    width: float = 0.1
    turn: float = 0.0
    stretch: float = 0.0
    shift: float = 0.0
    gamma: float = 0.1
    noise: float = 0.0

    def __post_init__(self) -> None:
        if min(self.deformation, self.turn, self.stretch, self.shift, self.gamma, self.noise) < 0 or not self.width > 0:
            raise ConfigError(f"augment: numbers must be >= 0 and width > 0; got {self}")

    def __call__(self, image: Image, labels: Image | None, rng: np.random.Generator) -> tuple[Image, Image | None]:
        grid = image.grid
        first = affine(rng, grid, self.turn, self.stretch, self.shift)
        transform = composed(first, diffeomorphism(rng, grid, self.deformation, self.width)) if self.deformation else first
        moved = image.moved_by(transform)
        data = moved.data.clamp(0, 1) ** float(np.exp(self.gamma * rng.standard_normal()))
        data = data + self.noise * torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32))
        return Image(data, grid), None if labels is None else labels.moved_by(transform, mode="nearest")
