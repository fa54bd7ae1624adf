"""Synthetic training pairs: random label maps with random intensities (after SynthMorph: Hoffmann et al., IEEE TMI 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdmm.data.inputs import Inputs
from rdmm.data.synthetic.anatomies import random_regions
from rdmm.data.synthetic.random_maps import random_affine, random_diffeomorphism, smooth_noise
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import composed
from rdmm.types import ConfigError, Tensor, require_finite_fields


@dataclass(frozen=True)
class Contrasts:
    """Pairs of random anatomies: regions inside an outer shape, deformed by a different random map for each image.

    Both images of a pair have similar random intensities per region, but each has its own bias field, blur and noise.

    Args:
        shape: voxels along each axis, of 1 mm.
        regions: number of regions, without the background.
        detail: smoothness (sigma) of the smaller regions, in domain units; half of the regions are three times smoother.
        deformation, width: size and smoothness (sigma) of each image's diffeomorphism, in domain units. It is composed of two maps,
            one as given and one half as large and half as smooth.
        turn, stretch, shift: standard deviations of each image's affine map (random_maps.random_affine).
        share: fraction of a region's intensity that both images have in common; 0: independent contrasts, like two modalities.
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
        require_finite_fields(self)
        if len(self.shape) not in (2, 3) or min(self.shape) < 16:
            raise ConfigError(f"shape must be 2 or 3 sizes of at least 16, e.g. [64,64,64]; got {list(self.shape)}")
        if self.regions < 2 or min(self.detail, self.width) <= 0 or not 0 <= self.share <= 1:
            raise ConfigError(f"contrasts: needs regions >= 2, detail > 0, width > 0 and share in [0, 1]; got {self}")

    @property
    def grid(self) -> Grid:
        """Voxels of 1 mm."""
        return Grid(tuple(self.shape), np.eye(len(self.shape) + 1))

    def pair(self, rng: np.random.Generator) -> Inputs:
        """A random pair with both label maps (0 is background)."""
        grid = self.grid
        anatomy = self._anatomy(rng, grid)
        common = rng.uniform(0.15, 1, self.regions)
        fixed_levels, moving_levels = self._levels(rng, common), self._levels(rng, common)
        fixed, fixed_labels = self._image(rng, anatomy, fixed_levels)
        moving, moving_labels = self._image(rng, anatomy, moving_levels)
        return Inputs(Pair(fixed, moving), fixed_labels, moving_labels)

    def _levels(self, rng: np.random.Generator, common: np.ndarray) -> Tensor:
        """Intensities (regions + 1,) of the background, which is 0, and of the regions: a mean of ``common`` and random numbers."""
        own = self.share * common + (1 - self.share) * rng.uniform(0.15, 1, self.regions)
        return torch.from_numpy(np.concatenate([[0], own])).float()

    def _anatomy(self, rng: np.random.Generator, grid: Grid) -> Image:
        """A label map: at each voxel the number of the largest of several random fields, inside an ellipsoid with a wavy surface."""
        return Image(random_regions(rng, grid, self.regions, self.detail), grid)

    def _image(self, rng: np.random.Generator, anatomy: Image, levels: Tensor) -> tuple[Image, Image]:
        """A deformed image of an anatomy, and its labels. ``levels`` (regions + 1,) are the intensities of the labels."""
        grid = anatomy.grid
        transform = random_affine(rng, grid, self.turn, self.stretch, self.shift)
        for part in (1.0, 0.5):
            transform = composed(transform, random_diffeomorphism(rng, grid, part * self.deformation, part * self.width))  # type: ignore[assignment]
        labels = anatomy.moved_by(transform, mode="nearest")
        data = gaussian(levels[labels.data.long()], float(rng.uniform(0.3, 0.9)) * max(grid.spacing), grid)
        data = data * (0.15 * smooth_noise(rng, 1, grid, 0.3)).exp()
        data = data + float(rng.uniform(0, 0.04)) * torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32))
        return Image(data.clamp_min(0), grid), labels
