"""Parts of anatomies that are formulas of a point, so that an image of them is exact wherever it is moved. Points x are (d, *s)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from rdmm.data.synthetic.random_maps import smooth_noise
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import ConfigError, Tensor

NOISE_VOXELS = 1.5
"""Smoothness (sigma) of the noise. That of scanners is smooth, too. Linear interpolation would average white noise away, so that any
similarity of intensities would prefer maps that are off by half a voxel."""


def column(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(d,) as (d, 1, ..) beside points."""
    return np.reshape(values, (-1, *(1,) * (x.ndim - 1)))


def unit(v: np.ndarray) -> np.ndarray:
    """v with length 1."""
    return v / np.linalg.norm(v)


def soft_step(distance: np.ndarray, blur: float) -> np.ndarray:
    """0 far below 0, 1 far above, over a width of ``blur``."""
    return 1 / (1 + np.exp(-np.clip(distance / (0.4 * blur), -30, 30)))


@dataclass(frozen=True)
class Texture:
    """A sum of ``height`` cos(2 pi k x + phase)."""

    vectors: np.ndarray
    phases: np.ndarray
    height: float

    @classmethod
    def random(cls, rng: np.random.Generator, d: int, height: float, lowest: float = 2, highest: float = 8) -> Texture:
        """Eight waves of ``lowest`` to ``highest`` cycles per edge."""
        vectors = np.array([rng.uniform(lowest, highest) * unit(rng.standard_normal(d)) for _ in range(8)])
        return cls(vectors, rng.uniform(0, 2 * math.pi, 8), height)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        waves = [np.cos(2 * math.pi * np.tensordot(k, x, 1) + phase) for k, phase in zip(self.vectors, self.phases, strict=True)]
        return self.height * np.sum(waves, 0)


def unit_points(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The voxels as points of [0, 1]^d, and the edges by which to multiply to get domain units."""
    extent = np.reshape(grid.extent, (-1, *(1,) * grid.ndim))
    return grid.identity(torch.zeros(1, dtype=torch.float64))[0].numpy() / extent, extent


def tensor(values: np.ndarray) -> Tensor:
    """Values (*s) as a channel (1, 1, *s)."""
    return torch.from_numpy(values.astype(np.float32))[None, None]


def noisy_image(rng: np.random.Generator, values: np.ndarray, noise: float, grid: Grid) -> Image:
    """An image of ``values`` (*s) with smooth noise of standard deviation ``noise``."""
    return Image(tensor(values) + noise * smooth_noise(rng, 1, grid, NOISE_VOXELS * max(grid.spacing)), grid)


class Scene(Protocol):
    """An anatomy in [0, 1]^d and its true motion, as formulas of points (d, *s)."""

    def true_map(self, x: np.ndarray) -> np.ndarray:
        """T(x), fixed -> moving, (d, *s)."""
        ...

    def intensities(self, x: np.ndarray, blur: float) -> np.ndarray:
        """The anatomy (*s); edges are ``blur`` wide."""
        ...


def drawn(scene: Scene, rng: np.random.Generator, noise: float, grid: Grid) -> tuple[np.ndarray, Tensor, Image, Image]:
    """A scene on a grid: the voxels as points x (d, *s) of [0, 1]^d, the displacement of T (1, d, *s) in domain units, and the fixed image
    A(T(x)) and the moving image A(x), each with noise of its own."""
    x, extent = unit_points(grid)
    y, blur = scene.true_map(x), max(grid.spacing)
    fixed, moving = (noisy_image(rng, scene.intensities(points, blur), noise, grid) for points in (y, x))
    return x, torch.from_numpy((y - x) * extent)[None].float(), fixed, moving


def require_scenes(name: str, count: int, shape: Sequence[int], first: int, noise: float) -> None:
    """Raise ConfigError for numbers that no set of scenes can have."""
    if count < 1 or first < 0 or len(shape) not in (2, 3) or min(shape) < 16:
        raise ConfigError(
            f"{name}: needs count >= 1, first >= 0 and a shape of 2 or 3 sizes of at least 16; got {count}, {first}, {list(shape)}"
        )
    if not noise >= 0:
        raise ConfigError(f"{name}: noise must be >= 0, not {noise}")
