"""A lung that breathes in a rigid ribbed cage: synthetic pairs whose true map is known at every voxel.

The moving image is an anatomy A(y), a formula. The fixed image is A(T(x)) with the true map T, another formula, so no image is
interpolated. T is the identity on the cage and outside of it. Each of the maps it is composed of is id + u with a Lipschitz constant of u
below 1, so T is a diffeomorphism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rdmm.data.inputs import Inputs
from rdmm.data.synthetic.formulas import Texture, column, drawn, require_scenes, soft_step, tensor, unit
from rdmm.data.truth import Truth
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import ConfigError, require_finite_fields

CAGE, SKIN = 1.22, 1.5
"""Outer surfaces of the cage and of the body, in radii of the lung."""

WALL = 0.35
"""The breath's motion falls from full size to 0 over this part of the lung's radius, at the cage."""

AIR, BODY, MUSCLE, RIB, LUNG, VESSEL = 0.0, 0.35, 0.5, 1.0, 0.2, 0.8
"""Intensities."""


@dataclass(frozen=True)
class Bump:
    """A local motion: x + shift (1 - |x - center|^2 / radius^2)^3 near ``center``, and x beyond ``radius``."""

    center: np.ndarray
    radius: float
    shift: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        away = np.square(x - column(self.center, x)).sum(0) / self.radius**2
        return x + column(self.shift, x) * np.clip(1 - away, 0, None) ** 3


@dataclass(frozen=True)
class Breath:
    """A lung that is shifted and widened about its center, up to the cage, which it does not move."""

    center: np.ndarray
    radii: np.ndarray
    shift: np.ndarray
    widening: float

    def depth(self, x: np.ndarray) -> np.ndarray:
        """0 in the lung's center, 1 at its surface."""
        return np.sqrt(np.square((x - column(self.center, x)) / column(self.radii, x)).sum(0))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        t = np.clip((1 - self.depth(x)) / WALL, 0, 1)
        share = t**3 * (10 - 15 * t + 6 * t**2)
        return x + share * (column(self.shift, x) + self.widening * (x - column(self.center, x)))


@dataclass(frozen=True)
class CageScene:
    """An anatomy in [0, 1]^d, and its true motion.

    Args:
        vessels: segments (n, 2, d), and their radii (n,).
        texture: of all tissue.
        ribs: number of ribs, and the phase of the first.
    """

    breath: Breath
    bumps: Sequence[Bump]
    vessels: tuple[np.ndarray, np.ndarray]
    texture: Texture
    ribs: tuple[int, float]

    def true_map(self, x: np.ndarray) -> np.ndarray:
        """T(x) of points (d, *s), fixed -> moving."""
        x = self.breath(x)
        for bump in self.bumps:
            x = bump(x)
        return x

    def intensities(self, x: np.ndarray, blur: float) -> np.ndarray:
        """The anatomy at points (d, *s); edges are ``blur`` wide."""
        depth, radius = self.breath.depth(x), float(self.breath.radii.min())

        def beyond(surface: float) -> np.ndarray:
            return soft_step((depth - surface) * radius, blur)

        vessels = np.zeros(x.shape[1:])
        for (start, end), width in zip(*self.vessels, strict=True):
            vessels = np.maximum(vessels, soft_step(width - _distance(x, start, end), blur))
        lung = LUNG + (VESSEL - LUNG) * vessels
        cage = MUSCLE + (RIB - MUSCLE) * soft_step(self._rib(x), 1.5 * blur)
        layers = [(lung, 1 - beyond(1.0)), (cage, beyond(1.0) - beyond(CAGE)), (BODY, beyond(CAGE) - beyond(SKIN)), (AIR, beyond(SKIN))]
        return sum(value * share for value, share in layers) + self.texture(x) * (1 - beyond(SKIN))

    def _rib(self, x: np.ndarray) -> np.ndarray:
        """Above 0 in ribs: around the lung in a slice, at regular heights of a volume."""
        y = (x - column(self.breath.center, x)) / column(self.breath.radii, x)
        count, phase = self.ribs
        turns = np.arctan2(y[1], y[0]) / (2 * math.pi) if len(x) == 2 else y[2] / 2.5
        return (np.cos(2 * math.pi * count * turns + phase) - 0.2) / (2 * math.pi * count)


def _distance(x: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distance of points (d, *s) from a segment."""
    along, arm = end - start, x - column(start, x)
    share = np.clip(np.tensordot(along, arm, 1) / max(float(along @ along), 1e-12), 0, 1)
    return np.sqrt(np.square(arm - column(along, x) * share).sum(0))


def _random_vessels(rng: np.random.Generator, breath: Breath, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A tree that grows from the lung's center, each branch thinner than the one from whose end it starts, and stays in the lung."""
    ends, widths = [breath.center], [0.018]
    segments: list[tuple[np.ndarray, np.ndarray]] = []
    while len(segments) < count:
        parent = int(rng.integers(len(ends)))
        start = ends[parent]
        outwards = (start - breath.center) / breath.radii.min()
        end = start + rng.uniform(0.05, 0.11) * unit(outwards + unit(rng.standard_normal(len(start))))
        if breath.depth(end) < 0.93:
            segments.append((start, end))
            ends.append(end)
            widths.append(max(0.005, 0.75 * widths[parent]))
    return np.array(segments), np.array(widths[1:])


def random_cage(rng: np.random.Generator, d: int, motions: int = 6) -> CageScene:
    """A random scene in ``d`` dimensions with ``motions`` local motions."""
    radii = rng.uniform(0.26, 0.3, d)
    shift = rng.uniform(0.02, 0.026) * unit(rng.standard_normal(d))
    breath = Breath(0.5 + rng.uniform(-0.015, 0.015, d), radii, shift, rng.choice([-1, 1]) * rng.uniform(0.05, 0.08))
    bumps: list[Bump] = []
    while len(bumps) < motions:
        radius = rng.uniform(0.07, 0.11)
        center = breath.center + rng.uniform(-1, 1, d) * radii
        if breath.depth(center) + radius / radii.min() < 0.95:
            bumps.append(Bump(center, radius, rng.uniform(0.25, 0.4) * radius * unit(rng.standard_normal(d))))
    vessels = _random_vessels(rng, breath, 70 if d == 2 else 140)
    return CageScene(breath, bumps, vessels, Texture.random(rng, d, 0.02), (int(rng.integers(9, 13)), rng.uniform(0, 2 * math.pi)))


@dataclass(frozen=True)
class RigidCage:
    """Pairs of a breathing lung in a rigid cage. Their region is the lung (label 1); the true map is known.

    Args:
        count: number of pairs.
        shape: voxels along each axis, of 1 mm; 2D or 3D.
        first: seed of the first pair; each further pair has the next seed.
        noise: standard deviation of the noise, which each image has of its own; ribs have intensity 1.
        motions: number of local motions in the lung.
    """

    count: int = 30
    shape: Sequence[int] = (200, 200)
    first: int = 0
    noise: float = 0.03
    motions: int = 6

    def __post_init__(self) -> None:
        require_finite_fields(self)
        require_scenes("cage", self.count, self.shape, self.first, self.noise)
        if self.motions < 0:
            raise ConfigError(f"cage: motions must be >= 0, not {self.motions}")

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {f"cage{seed:02d}": partial(self._case, seed) for seed in range(self.first, self.first + self.count)}

    def _case(self, seed: int) -> Inputs:
        rng, d = np.random.default_rng(seed), len(self.shape)
        grid = Grid(tuple(self.shape), np.eye(d + 1))
        scene = random_cage(rng, d, self.motions)
        x, u, fixed, moving = drawn(scene, rng, self.noise, grid)
        depth = scene.breath.depth(x)
        lung, cage = (Image(tensor(mask), grid) for mask in (depth < 1, (depth >= 1) & (depth < CAGE)))
        truth = Truth(u, {"lung": lung.data, "cage": cage.data})
        return Inputs(Pair(fixed, moving, regions=lung), fixed_regions=lung, truth=truth)
