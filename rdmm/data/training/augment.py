"""Random variations of training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rdmm.data.synthetic.random_maps import random_affine, random_diffeomorphism
from rdmm.spatial.image import Image
from rdmm.spatial.transform import composed
from rdmm.types import ConfigError


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
        first = random_affine(rng, grid, self.turn, self.stretch, self.shift)
        transform = composed(first, random_diffeomorphism(rng, grid, self.deformation, self.width)) if self.deformation else first
        moved = image.moved_by(transform)
        data = moved.data.clamp(0, 1) ** float(np.exp(self.gamma * rng.standard_normal()))
        data = data + self.noise * torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32))
        return Image(data, grid), None if labels is None else labels.moved_by(transform, mode="nearest")
