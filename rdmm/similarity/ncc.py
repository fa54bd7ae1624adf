"""Normalized cross-correlation over the whole image, model (31)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rdmm.kernels.available import has_kernels
from rdmm.similarity.statistics import VARIANCE_FLOOR, overlap, variances_and_covariance
from rdmm.spatial.image import Image
from rdmm.types import Tensor


@dataclass(frozen=True)
class NCC:
    """1 - corr(moved, target)^2, mean over channels; (b,). Invariant to affine changes of intensity.

    Args:
        fused: whether the compiled kernel is used; None: where it can be.
    """

    fused: bool | None = field(default=None, compare=False)
    supposes_one_contrast: ClassVar[bool] = True  # up to a linear change of intensity

    def __call__(self, moved: Image, target: Image) -> Tensor:
        weight = overlap(moved, target)
        if has_kernels(moved.data) if self.fused is None else self.fused:
            from rdmm.kernels.pointwise.polynomials import correlation

            return correlation(moved.data, target.data, weight, VARIANCE_FLOOR)
        va, vb, cov = variances_and_covariance(moved.data, target.data, weight)
        return 1 - ((cov**2 + VARIANCE_FLOOR) / (va * vb + VARIANCE_FLOOR)).mean(1)
