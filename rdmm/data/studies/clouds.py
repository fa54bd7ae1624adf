"""Clouds of random points, to compare the gradients of divergences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from rdmm.data.inputs import ShapeInputs, read_shapes
from rdmm.spatial.measure import Measure
from rdmm.types import MAX_SEED, require_whole


@dataclass(frozen=True)
class Clouds:
    """Two cases in the plane. ``crescent``: a disk is to become a crescent and a small disk beyond it. ``outliers``: the same target, and a
    tenth of the target's points far away from all others.

    Args:
        points: number of points of each cloud.
        seed: of the random points.
    """

    settings: ClassVar[str] = "shapes"
    points: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole("study.data.clouds.points", self.points, 20, 1_000_000)
        require_whole("study.data.clouds.seed", self.seed, 0, MAX_SEED)

    def cases(self) -> dict[str, Callable[[], ShapeInputs]]:
        return {"crescent": partial(self._make, 0.0), "outliers": partial(self._make, 0.1)}

    def _make(self, far: float) -> ShapeInputs:
        rng = np.random.default_rng(self.seed)
        counts = [round(0.2 * self.points), round(far * self.points)]
        arc, small, away = (
            crescent(rng, self.points - sum(counts)),
            disk(rng, counts[0], (0.85, 0.5), 0.06),
            disk(rng, counts[1], (0.5, 1.3), 0.04),
        )
        moving = disk(rng, self.points, (0.2, 0.5), 0.15)
        return read_shapes(as_measure(np.concatenate([arc, small, away])), as_measure(moving))


def disk(rng: np.random.Generator, count: int, center: tuple[float, float], radius: float) -> np.ndarray:
    """Points (n, 2), uniform in a disk."""
    angle, distance = 2 * np.pi * rng.random(count), radius * np.sqrt(rng.random(count))
    return np.stack([center[0] + distance * np.cos(angle), center[1] + distance * np.sin(angle)], 1)


def crescent(rng: np.random.Generator, count: int) -> np.ndarray:
    """Points (n, 2) of a half ring, open to the right."""
    angle, radius = np.pi * (0.5 + rng.random(count)), 0.25 + 0.07 * rng.random(count)
    return np.stack([0.75 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)], 1)


def as_measure(points: np.ndarray) -> Measure:
    """Points (n, 2) of equal weights."""
    return Measure(torch.as_tensor(points.T[None].copy(), dtype=torch.float32))
