"""Volumes from nothing: random anatomies in random contrasts, to train on where there are no data (the idea of SynthMorph:
Hoffmann et al., IEEE TMI 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdmm.data.inputs import Inputs
from rdmm.data.synthetic.random_maps import random_affine, random_diffeomorphism, smooth_noise
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import composed
from rdmm.types import ConfigError, Tensor


@dataclass(frozen=True)
class Contrasts:
    """Pairs of random anatomies: nested regions inside an outer shape, drawn twice through different random maps, with random
    intensities that both images of a pair share but for their own bias field, exponent and noise.

    Args:
        regions: their number, background left out.
        detail: sigma of the smallest regions, in domain units; those of half of them are three times wider.
        deformation, width: size and smoothness of each image's diffeomorphism, in domain units: both are sums of one as given and
            one half as large and half as wide.
        turn, stretch, shift: of each image's affine map (augment.affine).
        share: of a region's intensity that both images have in common; 0: contrasts of their own, as of two modalities.
    """

    shape: Sequence[int] = (64, 64, 64)
    regions: int = 16
    detail: float = 0.04
    deformation: float = 0.025
    width: float = 0.09
    turn: float = 0.05
    stretch: float = 0.05
    shift: float = 0.02
    share: float = 0.9

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or min(self.shape) < 16:
            raise ConfigError(f"shape must be 2 or 3 sizes of 16 and more, not {list(self.shape)}")
        if self.regions < 2 or min(self.detail, self.width) <= 0 or not 0 <= self.share <= 1:
            raise ConfigError(f"contrasts: regions >= 2, detail and width > 0, share in [0, 1] are wanted, not {self}")

    @property
    def grid(self) -> Grid:
        """Voxels of 1 mm."""
        return Grid(tuple(self.shape), np.eye(len(self.shape) + 1))

    def pair(self, rng: np.random.Generator) -> Inputs:
        """A pair and both label maps (0 background)."""
        grid = self.grid
        anatomy = self._anatomy(rng, grid)
        common, levels = rng.uniform(0.15, 1, self.regions), []
        for _ in range(2):
            own = self.share * common + (1 - self.share) * rng.uniform(0.15, 1, self.regions)
            levels.append(torch.from_numpy(np.concatenate([[0], own])).float())
        fixed, moving = (self._image(rng, anatomy, level) for level in levels)
        return Inputs(Pair(fixed[0], moving[0]), fixed[1], moving[1])

    def _anatomy(self, rng: np.random.Generator, grid: Grid) -> Image:
        """Where each of several random fields is the largest, inside an ellipsoid with a wavy surface."""
        half = self.regions // 2
        fields = [smooth_noise(rng, n, grid, s) for n, s in ((half, self.detail), (self.regions - half, 3 * self.detail))]
        region = torch.cat(fields, 1).argmax(1, keepdim=True) + 1
        x = (grid.identity(fields[0]) / torch.tensor(grid.extent).view(1, -1, *(1,) * grid.ndim) - 0.5) * 2
        radii = torch.from_numpy(rng.uniform(0.65, 0.9, grid.ndim)).float().view(1, -1, *(1,) * grid.ndim)
        inside = (x / radii).square().sum(1, keepdim=True) + 0.15 * smooth_noise(rng, 1, grid, 2 * self.detail) < 1
        return Image((region * inside).float(), grid)

    def _image(self, rng: np.random.Generator, anatomy: Image, levels: Tensor) -> tuple[Image, Image]:
        grid = anatomy.grid
        transform = random_affine(rng, grid, self.turn, self.stretch, self.shift)
        for part in (1.0, 0.5):
            transform = composed(transform, random_diffeomorphism(rng, grid, part * self.deformation, part * self.width))  # type: ignore[assignment]
        labels = anatomy.moved_by(transform, mode="nearest")
        data = gaussian(levels[labels.data.long()], float(rng.uniform(0.3, 0.9)) * max(grid.spacing), grid)
        data = data * (0.15 * smooth_noise(rng, 1, grid, 0.3)).exp()
        data = data + float(rng.uniform(0, 0.04)) * torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32))
        return Image(data.clamp_min(0), grid), labels
