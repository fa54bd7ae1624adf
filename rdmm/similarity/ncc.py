"""Global correlation, model (31)."""

from __future__ import annotations

from dataclasses import dataclass

from rdmm.similarity.statistics import TINY, moments, overlap
from rdmm.spatial.image import Image
from rdmm.types import Tensor


@dataclass(frozen=True)
class NCC:
    """1 - corr(moved, target)^2, mean over channels; (b,). Invariant to affine changes of intensity."""

    def __call__(self, moved: Image, target: Image) -> Tensor:
        va, vb, cov = moments(moved.data, target.data, overlap(moved, target))
        return 1 - ((cov**2 + TINY) / (va * vb + TINY)).mean(1)
