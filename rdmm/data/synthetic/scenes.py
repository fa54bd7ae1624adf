"""The synthetic shapes of the RDMM paper (section 4): one foreground object with two objects inside it, and others outside."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import numpy as np
import torch

from rdmm.data.inputs import Inputs
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import ConfigError, Tensor

SOLID_KINDS = ("ellipse", "rectangle", "triangle")

INNER_RADIUS = {"ellipse": 1.0, "rectangle": 0.85, "triangle": 0.5}
"""Distance from the center to the nearest side of each kind, with radii of 1."""

MARGIN = 0.03
"""Least gap between two sides, and from a side to the edge of the picture, in units of the picture. From 50 voxels on (in 3D 58), objects
that are apart do not touch, corners included."""

DRAWS_OF_A_SCENE = 100
"""Variations of a scene that are drawn, at most, before another scene is. About a fifth of all variations keeps MARGIN."""

FOREGROUND, INSIDE, OUTSIDE = 1, 2, 4
"""First labels: the foreground is 1, the objects inside are 2 and 3, those outside are 4 and above."""

LABEL_INTENSITIES = {0: 0.0, 1: 0.5, 2: 0.9, 3: 0.75}
OUTSIDE_INTENSITY = 0.65


@dataclass(frozen=True)
class Solid:
    """An ellipse, rectangle or triangle (in 3D: ellipsoid, box, prism) in [0, 1]^d."""

    kind: str
    center: np.ndarray
    radii: np.ndarray
    angle: float
    label: int

    def gauge(self, y: np.ndarray) -> np.ndarray:
        """How far points y (d, *s) are from the center, in the solid's own axes and radii: 1 on the surface, less inside; (*s)."""
        if self.kind == "ellipse":
            return np.asarray(np.sqrt((y**2).sum(0)))
        if self.kind == "rectangle":
            return np.asarray(np.abs(y).max(0) / 0.85)
        sides = np.stack([-y[1] / 0.7, y[1] + 1.7 * np.abs(y[0]), *np.abs(y[2:]) / 0.85])
        return np.asarray(sides.max(0))

    def inside(self, x: np.ndarray) -> np.ndarray:
        """Which of the points ``x`` (d, *s) are inside; booleans (*s)."""
        d = x.ndim - 1
        y = x - self.center.reshape(-1, *(1,) * d)
        return self.gauge(self._turned(y, -self.angle) / self.radii.reshape(-1, *(1,) * d)) <= 1

    def surface(self) -> np.ndarray:
        """Points (d, n) of the surface, in all directions."""
        y = _directions(len(self.center))
        return self.center[:, None] + self._turned(self.radii[:, None] * y / self.gauge(y), self.angle)

    def grown(self, margin: float) -> Solid:
        """The same kind, with each side further out by ``margin`` or more."""
        return replace(self, radii=self.radii + margin / INNER_RADIUS[self.kind])

    @staticmethod
    def _turned(y: np.ndarray, angle: float) -> np.ndarray:
        c, s = math.cos(angle), math.sin(angle)
        return np.stack([c * y[0] - s * y[1], s * y[0] + c * y[1], *y[2:]])

    def vary(self, shift: np.ndarray, scale: np.ndarray, angle: float, about: np.ndarray | None = None) -> Solid:
        """Scale along the own axes, rotate and shift. With ``about``, its center is also scaled and rotated about that point."""
        arm = np.zeros_like(shift) if about is None else self.center - about
        rotated = self._turned(arm, angle) * scale
        return Solid(self.kind, self.center - arm + rotated + shift, self.radii * scale, self.angle + angle, self.label)


@cache
def _directions(d: int) -> np.ndarray:
    """Unit vectors (d, n), spread over all directions."""
    turn = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    if d == 2:
        return np.stack([np.cos(turn), np.sin(turn)])
    z = np.linspace(-1, 1, 31)[:, None]
    flat = np.sqrt(1 - z**2)
    return np.stack([flat * np.cos(turn[::3]), flat * np.sin(turn[::3]), z + 0 * turn[::3]]).reshape(3, -1)


def _apart(a: Solid, b: Solid) -> bool:
    """Whether the sides of two solids keep MARGIN: one beside the other, or, if it is drawn as inner, ``b`` in the foreground ``a``."""
    if a.label == FOREGROUND and b.label < OUTSIDE:
        return bool(a.inside(b.grown(MARGIN).surface()).all())
    a, b = a.grown(MARGIN / 2), b.grown(MARGIN / 2)
    return not (a.inside(b.surface()).any() or b.inside(a.surface()).any())


def _is_clear(scene: list[Solid]) -> bool:
    """Whether all solids keep MARGIN from each other and from the edge of the picture."""
    ends = (np.abs(solid.surface() - 0.5).max() for solid in scene)
    return max(ends) <= 0.5 - MARGIN and all(_apart(a, b) for a, b in itertools.combinations(scene, 2))


def _random_scene(rng: np.random.Generator, d: int) -> list[Solid]:
    """A large object in the middle, two objects inside it, two to five around it."""
    middle = np.full(d, 0.5)
    kinds = rng.choice(SOLID_KINDS[:2], 1).tolist() + rng.choice(SOLID_KINDS, 2).tolist()
    angle = rng.uniform(0, math.pi)
    foreground = Solid(kinds[0], middle, np.full(d, 0.26) * rng.uniform(0.9, 1.1, d), angle, FOREGROUND)
    direction = np.array([math.cos(angle), math.sin(angle), *(0.0,) * (d - 2)])
    scene = [foreground]
    for i, side in enumerate((-1, 1)):
        radii = np.full(d, 0.075) * rng.uniform(0.85, 1.15, d)
        scene.append(Solid(kinds[1 + i], middle + side * 0.115 * direction, radii, rng.uniform(0, math.pi), INSIDE + i))
    start = rng.uniform(0, 2 * math.pi)
    count = int(rng.integers(2, 6))
    for i in range(count):
        angle = start + 2 * math.pi * i / count
        center = middle + 0.4 * np.array([math.cos(angle), math.sin(angle), *(0.0,) * (d - 2)])
        scene.append(
            Solid(str(rng.choice(SOLID_KINDS)), center, np.full(d, 0.055) * rng.uniform(0.8, 1.2, d), rng.uniform(0, math.pi), OUTSIDE + i)
        )
    return scene


def _vary_separately(scene: list[Solid], rng: np.random.Generator) -> list[Solid]:
    """Give each object a random shift, scale and rotation. Objects inside the foreground also get its shift."""
    d = len(scene[0].center)
    shift, out = rng.uniform(-0.03, 0.03, d), []
    for solid in scene:
        own = rng.uniform(-0.015, 0.015, d) + (shift if solid.label < OUTSIDE else 0)
        scale = rng.uniform(0.85, 1.15, d) if solid.label == FOREGROUND else rng.uniform(0.8, 1.2, d)
        out.append(solid.vary(own, scale, rng.uniform(-0.2, 0.2)))
    return out


def _vary_together(scene: list[Solid], rng: np.random.Generator) -> list[Solid]:
    """Give all objects the same random similarity transform. The two objects inside the foreground vary in addition."""
    d, middle = len(scene[0].center), scene[0].center
    shift, scale, angle = rng.uniform(-0.03, 0.03, d), np.full(d, rng.uniform(0.92, 1.08)), rng.uniform(-0.15, 0.15)
    out = []
    for solid in scene:
        if solid.label in (INSIDE, INSIDE + 1):
            solid = solid.vary(rng.uniform(-0.02, 0.02, d), rng.uniform(0.75, 1.25, d), rng.uniform(-0.4, 0.4))
        out.append(solid.vary(shift, scale, angle, middle))
    return out


def _draw(scene: list[Solid], grid: Grid) -> tuple[Tensor, Tensor]:
    """Image and labels (1, 1, *s) of a scene."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64))[0].numpy() / np.reshape(grid.extent, (-1, *(1,) * grid.ndim))
    labels = np.zeros(grid.shape, dtype=np.float32)
    for solid in scene:
        labels[solid.inside(x)] = solid.label
    masks = [labels == k for k in LABEL_INTENSITIES]
    image = np.select(masks, list(LABEL_INTENSITIES.values()), default=OUTSIDE_INTENSITY)
    smooth = gaussian(torch.from_numpy(image.astype(np.float32))[None, None], 0.6 * max(grid.spacing), grid)
    return smooth, torch.from_numpy(labels)[None, None]


VARIATIONS = {"own": _vary_separately, "together": _vary_together}


def _clear_variations(rng: np.random.Generator, d: int, variation: str) -> list[list[Solid]]:
    """Two random variations of a random scene. All three are clear, so the objects have the same neighbors in both variations."""
    while True:
        scene = _random_scene(rng, d)
        if _is_clear(scene):
            drawn = (VARIATIONS[variation](scene, rng) for _ in range(DRAWS_OF_A_SCENE))
            clear = list(itertools.islice(filter(_is_clear, drawn), 2))
            if len(clear) == 2:
                return clear


def shapes_pair(
    seed: int = 0, shape: Sequence[int] = (200, 200), variation: Literal["own", "together"] = "own"
) -> tuple[Pair, Tensor, Tensor]:
    """Two random variations of one random scene, in 2D or 3D, voxels of 1 mm.

    In both, the same objects are inside the foreground, and all keep MARGIN from each other: a diffeomorphism can solve every pair.

    Args:
        seed: the same seed gives the same pair.
        shape: voxels along each axis.
        variation: ``own``: each object has its own shift, scale and rotation. ``together``: all objects share them, and only the
            two objects inside the foreground vary in addition, so a smooth deformation of the background is enough.

    Returns:
        the pair (its regions are the moving foreground with the objects inside), and the labels of the fixed and the moving image,
        (1, 1, *s): 0 background, 1 foreground object, 2 and 3 inside it, 4 and above outside.
    """
    rng = np.random.default_rng(seed)
    grid = Grid(tuple(shape), np.eye(len(shape) + 1))
    (fixed, fixed_labels), (moving, moving_labels) = (_draw(scene, grid) for scene in _clear_variations(rng, len(shape), variation))
    regions = Image((moving_labels > 0).float() * (moving_labels < OUTSIDE), grid)
    return Pair(Image(fixed, grid), Image(moving, grid), regions=regions), fixed_labels, moving_labels


@dataclass(frozen=True)
class SyntheticShapes:
    """Synthetic pairs for evaluation. Their region is the foreground with the objects inside.

    Args:
        count: number of pairs.
        first: seed of the first pair; each further pair has the next seed.
    """

    count: int = 40
    shape: Sequence[int] = (200, 200)
    variation: Literal["own", "together"] = "own"
    first: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or min(self.shape) < 16 or len(self.shape) not in (2, 3):
            raise ConfigError(f"shapes: needs count >= 1 and a shape of 2 or 3 sizes of at least 16; got {self.count}, {list(self.shape)}")

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {f"shapes{seed:02d}": partial(self._case, seed) for seed in range(self.first, self.first + self.count)}

    def _case(self, seed: int) -> Inputs:
        pair, fixed, moving = shapes_pair(seed, self.shape, self.variation)
        grid = pair.fixed.grid
        foreground = Image((fixed > 0).float() * (fixed < OUTSIDE), grid)
        return Inputs(pair, Image(fixed, grid), Image(moving, grid), fixed_regions=foreground)
