"""An organ that slides along a wall: synthetic pairs whose true map is known at every voxel and jumps at the border.

The wall stands still. The organ moves along it, most in the middle, and each side is mapped onto itself. The true map is smooth on either
side, and its jump is tangential.
"""

from __future__ import annotations

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
from rdmm.types import require_finite_fields

LENGTH, DEPTH = 0.4, 0.35
"""Half length of the moving part of the border, and depth to which the organ moves."""

NEAR = 0.12
"""Errors are measured up to this distance from the border."""

WALL, ORGAN, SPOT = 0.3, 0.5, 0.35
"""Intensities of the two sides, and height of the spots."""


@dataclass(frozen=True)
class SlidingScene:
    """Two sides of a border in [0, 1]^d, and the motion of one of them.

    Args:
        center: a point of the border, around which the motion is largest.
        normal: unit vector from the organ to the wall.
        shift: of the organ at ``center``, along the border.
        spots: centers (n, d) and radii (n,) of spots on both sides; none crosses the border.
    """

    center: np.ndarray
    normal: np.ndarray
    shift: np.ndarray
    spots: tuple[np.ndarray, np.ndarray]
    texture: Texture

    def height(self, x: np.ndarray) -> np.ndarray:
        """Distance from the border, negative in the organ."""
        return np.tensordot(self.normal, x - column(self.center, x), 1)

    def along(self, x: np.ndarray) -> np.ndarray:
        """Distance from the center along the border."""
        arm = x - column(self.center, x)
        return np.sqrt(np.square(arm - column(self.normal, x) * self.height(x)).sum(0))

    def true_map(self, x: np.ndarray) -> np.ndarray:
        """T(x) of points (d, *s), fixed -> moving."""
        height = self.height(x)
        share = np.clip(1 - (self.along(x) / LENGTH) ** 2, 0, None) ** 3 * np.clip(1 - (height / DEPTH) ** 2, 0, None) ** 3
        return x + column(self.shift, x) * np.where(height < 0, share, 0)

    def intensities(self, x: np.ndarray, blur: float) -> np.ndarray:
        """The anatomy at points (d, *s); edges are ``blur`` wide."""
        out = ORGAN + (WALL - ORGAN) * soft_step(self.height(x), blur) + self.texture(x)
        for center, radius in zip(*self.spots, strict=True):
            out += SPOT * soft_step(radius - np.sqrt(np.square(x - column(center, x)).sum(0)), blur)
        return out


def random_sliding(rng: np.random.Generator, d: int) -> SlidingScene:
    """A random scene in ``d`` dimensions."""
    center, normal = 0.5 + rng.uniform(-0.04, 0.04, d), unit(rng.standard_normal(d))
    across = rng.standard_normal(d)
    shift = rng.uniform(0.04, 0.06) * unit(across - normal * (across @ normal))
    texture = Texture.random(rng, d, 0.02)
    centers: list[np.ndarray] = []
    radii: list[float] = []
    while len(centers) < (60 if d == 2 else 200):
        spot, radius = rng.uniform(0.04, 0.96, d), rng.uniform(0.01, 0.02)
        if abs(normal @ (spot - center)) > 1.3 * radius and all(
            np.linalg.norm(spot - c) > radius + r + 0.02 for c, r in zip(centers, radii, strict=True)
        ):
            centers.append(spot)
            radii.append(radius)
    return SlidingScene(center, normal, shift, (np.array(centers), np.array(radii)), texture)


@dataclass(frozen=True)
class Sliding:
    """Pairs of an organ (label 1) that slides along a wall; the true map is known, and its errors near the border on either side.

    Args:
        count: number of pairs.
        shape: voxels along each axis, of 1 mm; 2D or 3D.
        first: seed of the first pair; each further pair has the next seed.
        noise: standard deviation of the noise, which each image has of its own.
    """

    count: int = 30
    shape: Sequence[int] = (200, 200)
    first: int = 0
    noise: float = 0.03

    def __post_init__(self) -> None:
        require_finite_fields(self)
        require_scenes("sliding", self.count, self.shape, self.first, self.noise)

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {f"sliding{seed:02d}": partial(self._case, seed) for seed in range(self.first, self.first + self.count)}

    def _case(self, seed: int) -> Inputs:
        rng, d = np.random.default_rng(seed), len(self.shape)
        grid = Grid(tuple(self.shape), np.eye(d + 1))
        scene = random_sliding(rng, d)
        x, u, fixed, moving = drawn(scene, rng, self.noise, grid)
        height, near = scene.height(x), scene.along(x) < LENGTH
        organ = Image(tensor(height < 0), grid)
        sides = {"organ": near & (height < 0) & (height > -NEAR), "wall": near & (height >= 0) & (height < NEAR)}
        truth = Truth(u, {name: tensor(mask) for name, mask in sides.items()})
        return Inputs(Pair(fixed, moving, regions=organ), fixed_regions=organ, truth=truth)
