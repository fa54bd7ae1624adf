"""Training pairs made in a fraction of a second: label maps are made once, and everything else is drawn for each pair.

After SynthMorph (Hoffmann et al., IEEE TMI 2022). Maps are computed at half the resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from rdmm.data.inputs import Inputs
from rdmm.data.synthetic.anatomies import KINDS, Anatomies
from rdmm.data.synthetic.random_maps import random_affine, random_diffeomorphism, smooth_noise
from rdmm.spatial import ops
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import composed, displacement
from rdmm.types import ConfigError, Tensor, require_finite_fields

SAMPLED = 7
"""Intensities are scaled by the percentiles of every SAMPLED-th voxel."""


@dataclass(frozen=True)
class Volumes:
    """Pairs of random anatomies (Anatomies) with random contrasts, maps, slices, fields of view and orders of the axes.

    Args:
        shape: voxels along each axis, of 1 mm.
        kinds: of anatomies.KINDS.
        anatomies: number of label maps that training takes; held-out pairs have new ones.
        folder: where label maps are kept; null: in memory.
        regions: number of labels of an anatomy, about.
        deformation, width: largest size, and smoothness (sigma), of each image's diffeomorphism, in domain units. Each pair has a size of
            its own, and half as much of it again at half the width.
        turn, stretch, shift: standard deviations of each image's affine map (random_maps.random_affine).
        share: smallest fraction of a label's intensity that both images have in common; each pair has its own, up to 1.
        thickness: largest thickness of slices, in voxels; one image in two has slices of 1 to that many voxels along one axis.
        cut: largest part of an axis that lies outside of the field of view; one image in four is cut at one end.
        sliding: fraction of pairs in which one side of a plane slides along it, by up to 5 % of the longest edge.
        flips: whether axes are reversed and put in another order, in both images alike.
    """

    shape: Sequence[int] = (96, 96, 96)
    kinds: Sequence[str] = tuple(KINDS)
    anatomies: int = 100
    folder: str | None = None
    regions: int = 16
    deformation: float = 0.03
    width: float = 0.09
    turn: float = 0.1
    stretch: float = 0.08
    shift: float = 0.03
    share: float = 0.5
    thickness: float = 5.0
    cut: float = 0.25
    sliding: float = 0.1
    flips: bool = True

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if len(self.shape) not in (2, 3) or min(self.shape) < 16:
            raise ConfigError(f"shape must be 2 or 3 sizes of at least 16, e.g. [96,96,96]; got {list(self.shape)}")
        if self.anatomies < 1 or self.width <= 0 or self.thickness < 1:
            raise ConfigError(f"volumes: anatomies >= 1, width > 0 and thickness >= 1 are wanted; got {self}")
        if min(self.deformation, self.turn, self.stretch, self.shift) < 0 or not 0 <= self.cut < 1:
            raise ConfigError(f"volumes: sizes of maps >= 0 and cut in [0, 1) are wanted; got {self}")
        if not (0 <= self.share <= 1 and 0 <= self.sliding <= 1):
            raise ConfigError(f"volumes: share and sliding in [0, 1] are wanted; got {self}")

    @property
    def grid(self) -> Grid:
        """Voxels of 1 mm."""
        return self._library.grid

    @cached_property
    def _library(self) -> Anatomies:
        return Anatomies(self.shape, self.kinds, self.regions, self.folder)

    def pair(self, rng: np.random.Generator, *, new: bool = False) -> Inputs:
        """A random pair with both label maps (0 is the background).

        Args:
            new: with a new label map, as no pair of the training has.
        """
        labels = self._library.make(rng, str(rng.choice(self.kinds))) if new else self._library(int(rng.integers(self.anatomies)))
        labels = self._reoriented(rng, labels) if self.flips else labels
        levels, share = self._levels(rng), float(rng.uniform(self.share, 1))
        size = float(rng.uniform(0, self.deformation))
        wall = self._wall(rng) if rng.uniform() < self.sliding else None
        sides = [self._image(rng, labels, share * levels + (1 - share) * self._levels(rng), size, w) for w in (wall, None)]
        (fixed, fixed_labels), (moving, moving_labels) = sides
        return Inputs(Pair(fixed, moving), fixed_labels, moving_labels)

    @staticmethod
    def _levels(rng: np.random.Generator) -> Tensor:
        """Intensities of all labels; that of the background is 0 in half of the images."""
        levels = rng.uniform(0.1, 1, 256)
        levels[0] *= rng.integers(2)
        return torch.from_numpy(levels).float()

    def _reoriented(self, rng: np.random.Generator, labels: Tensor) -> Tensor:
        """Axes of equal size in another order, each in one of its two directions."""
        d, order = len(self.shape), rng.permutation(len(self.shape))
        if [self.shape[k] for k in order] != list(self.shape):
            order = np.arange(d)
        backward = [2 + k for k in range(d) if rng.integers(2)]
        return labels.permute(0, 1, *(2 + int(k) for k in order)).flip(backward).contiguous()

    def _wall(self, rng: np.random.Generator) -> Tensor:
        """(1, d, *s): one side of a plane slides along it; the plane goes near the middle."""
        grid, d = self.grid, len(self.shape)
        normal, along = (v / np.linalg.norm(v) for v in rng.standard_normal((2, d)))
        along = along - normal * (along @ normal)
        x = grid.identity(torch.zeros(1)) - torch.tensor(grid.extent).view(1, -1, *(1,) * d) * float(rng.uniform(0.35, 0.65))
        n, shift = (torch.from_numpy(v).float().view(1, -1, *(1,) * d) for v in (normal, rng.uniform(0.02, 0.05) * along))
        height = (n * x).sum(1, keepdim=True)
        distance = x.square().sum(1, keepdim=True)
        return torch.where(height < 0, (1 - distance / 0.25).clamp_min(0).square(), 0) * shift

    def _image(self, rng: np.random.Generator, anatomy: Tensor, levels: Tensor, size: float, wall: Tensor | None) -> tuple[Image, Image]:
        """A deformed image of an anatomy, and its labels."""
        grid = self.grid
        points = self._map(rng, size)
        if wall is not None:
            points = points + wall
        labels = ops.sample(anatomy, points, grid, mode="nearest", outside="zero")
        data = levels[labels.long()]
        data = self._sliced(rng, data) if rng.integers(2) else gaussian(data, float(rng.uniform(0.3, 0.9)) * max(grid.spacing), grid)
        data = data * ops.resize((0.15 * smooth_noise(rng, 1, grid.scaled(0.25), 0.3)).exp(), grid.shape)
        data = data + float(rng.uniform(0, 0.04)) * torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32))
        data = _scaled(data)
        if rng.integers(4) == 0:
            data, labels = self._cut(rng, data, labels)
        return Image(data, grid), Image(labels.float(), grid)

    def _map(self, rng: np.random.Generator, size: float) -> Tensor:
        """Where each voxel comes from, (1, d, *s) in domain units; computed at half the resolution."""
        coarse = self.grid.scaled(0.5)
        transform = composed(
            random_affine(rng, coarse, self.turn, self.stretch, self.shift), random_diffeomorphism(rng, coarse, size, self.width)
        )
        transform = composed(transform, random_diffeomorphism(rng, coarse, size / 2, self.width / 2))
        u = displacement(transform, coarse, torch.zeros(1))
        return self.grid.identity(u) + ops.resize(u, self.grid.shape)

    def _sliced(self, rng: np.random.Generator, data: Tensor) -> Tensor:
        """As seen through slices of 1 to ``thickness`` voxels along a random axis."""
        axis, thickness = int(rng.integers(len(self.shape))), float(rng.uniform(1, max(self.thickness, 1)))
        shape = list(self.shape)
        shape[axis] = max(4, round((shape[axis] - 1) / thickness) + 1)
        return ops.resize(Image(data, self.grid).resampled(self.grid.resized(shape)).data, self.grid.shape)

    def _cut(self, rng: np.random.Generator, data: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing is seen beyond one end of an axis."""
        axis = int(rng.integers(len(self.shape)))
        n = self.shape[axis]
        lost = int(rng.uniform(0, self.cut) * n)
        index = torch.arange(n) >= lost if rng.integers(2) else torch.arange(n) < n - lost
        seen = index.view(*(n if k == axis + 2 else 1 for k in range(data.ndim)))
        return data * seen, labels * seen


def _scaled(data: Tensor) -> Tensor:
    """Intensities whose percentiles .1 and 99.9 are 0 and 1."""
    low, high = (float(x) for x in np.percentile(data.flatten()[::SAMPLED].numpy(), [0.1, 99.9]))
    return ((data - low) / max(high - low, 1e-6)).clamp(0, 1)
