"""Random augmentation of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from rdmm.data.synthetic.random_maps import random_affine, random_diffeomorphism
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Transform, composed
from rdmm.types import ConfigError, require_finite_fields


class Augmentation(Protocol):
    """An image, its labels (or None) and a random generator to the image and labels to train on, on the same grid."""

    def __call__(self, image: Image, labels: Image | None, rng: np.random.Generator) -> tuple[Image, Image | None]: ...


@dataclass(frozen=True)
class Augment:
    """Deform an image and its labels at random, and vary its intensities. All numbers except ``width`` are standard deviations; 0 is off.

    Args:
        deformation, width: size and smoothness (sigma) of a random diffeomorphism, in domain units.
        turn, stretch, shift: rotation (radians), log-scale and translation (domain units) of a random affine map.
        gamma: intensities between 0 and 1 are raised to a random power; this is the standard deviation of its logarithm.
        noise: noise added to the intensities.
    """

    deformation: float = 0.01
    width: float = 0.1
    turn: float = 0.0
    stretch: float = 0.0
    shift: float = 0.0
    gamma: float = 0.1
    noise: float = 0.0

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if min(self.deformation, self.turn, self.stretch, self.shift, self.gamma, self.noise) < 0 or not self.width > 0:
            raise ConfigError(f"augment: all numbers must be >= 0, and width > 0; got {self}")

    def __call__(self, image: Image, labels: Image | None, rng: np.random.Generator) -> tuple[Image, Image | None]:
        """The augmented image and labels."""
        grid = image.grid
        transform: Transform = random_affine(rng, grid, self.turn, self.stretch, self.shift)
        if self.deformation:
            transform = composed(transform, random_diffeomorphism(rng, grid, self.deformation, self.width))
        moved = image.moved_by(transform)
        data = moved.data.clamp(0, 1) ** float(np.exp(self.gamma * rng.standard_normal()))
        data = data + self.noise * torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32))
        return Image(data, grid), None if labels is None else labels.moved_by(transform, mode="nearest")
