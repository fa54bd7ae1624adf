"""Normalized cross-correlation over the whole image, model (31)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdmm.similarity.statistics import VARIANCE_FLOOR, overlap, variances_and_covariance
from rdmm.spatial.image import Image
from rdmm.types import Tensor


@dataclass(frozen=True)
class NCC:
    """1 - corr(moved, target)^2, mean over channels; (b,). Invariant to affine changes of intensity."""

    supposes_one_contrast: ClassVar[bool] = True  # up to a linear change of intensity

    def __call__(self, moved: Image, target: Image) -> Tensor:
        va, vb, cov = variances_and_covariance(moved.data, target.data, overlap(moved, target))
        return 1 - ((cov**2 + VARIANCE_FLOOR) / (va * vb + VARIANCE_FLOOR)).mean(1)
