"""Mean squared difference, model (30)."""

from __future__ import annotations

from dataclasses import dataclass

from rdmm.similarity.statistics import mean, overlap
from rdmm.spatial.image import Image
from rdmm.types import Tensor


@dataclass(frozen=True)
class SSD:
    """Mean of (moved - target)^2 over voxels and channels; (b,). As a mean it does not depend on the resolution."""

    def __call__(self, moved: Image, target: Image) -> Tensor:
        weight = overlap(moved, target)
        return mean((moved.data - target.data) ** 2, weight).flatten(1).mean(1)
