"""Normalized mutual information (Studholme, Hill, Hawkes, Pattern Recognition 32, 1999); model (33)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import torch

from rdmm.kernels.available import has_kernels
from rdmm.similarity.statistics import overlap
from rdmm.spatial.grid import apply_matrix
from rdmm.spatial.image import Image
from rdmm.types import ConfigError, Tensor


@dataclass(frozen=True)
class NMI:
    """2 - (H(a) + H(b)) / H(a, b), mean over channels; (b,).

    The joint histogram is a Parzen estimate: quadratic B-splines distribute each voxel over three neighboring bins,
    so that the gradient is continuous.

    Args:
        bins: number of bins of each image, between its own minimum and maximum inside the masks.
        fused: whether the compiled kernel is used; None: where it can be.
    """

    bins: int = 32
    fused: bool | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.bins < 4:
            raise ConfigError(f"similarity.bins must be at least 4, not {self.bins}")

    def __call__(self, moved: Image, target: Image) -> Tensor:
        weight = overlap(moved, target)
        if has_kernels(moved.data) if self.fused is None else self.fused:
            from rdmm.kernels.pointwise.histogram import mutual_information

            return mutual_information(moved.data, target.data, weight, self.bins)
        values = []
        for i in range(moved.data.shape[0]):
            w = None if weight is None else weight[i, 0].flatten()
            channels = zip(moved.data[i].flatten(1), target.data[i].flatten(1), strict=True)
            values.append(torch.stack([self._channel(a, b, w) for a, b in channels]).mean())
        return torch.stack(values)

    def _channel(self, a: Tensor, b: Tensor, weight: Tensor | None) -> Tensor:
        ia, wa = self._bin_fractions(a, weight)
        ib, wb = self._bin_fractions(b, weight)
        joint = a.new_zeros(self.bins * self.bins)
        for p in range(3):
            for q in range(3):
                fraction = wa[p] * wb[q] if weight is None else wa[p] * wb[q] * weight
                joint = joint.index_add(0, (ia + p) * self.bins + ib + q, fraction)
        joint = (joint / joint.sum()).view(self.bins, self.bins)
        both = _entropy(joint.flatten())
        return 2 - (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / both.clamp_min(1e-6)

    def _bin_fractions(self, x: Tensor, weight: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The first of the three bins of each voxel, and the fractions of the voxel in them. Voxels without weight may be in any bin."""
        low, high = (x if weight is None else torch.where(weight > 0, x, far) for far in (inf, -inf))
        low, high = low.min(), high.max()
        slope = (self.bins - 3) / (high - low).clamp_min(1e-12)
        line = torch.stack([torch.stack([slope, 1 - low * slope]), torch.stack([0 * slope, 0 * slope + 1])])
        position = apply_matrix(line, x[None, None])[0, 0]  # slope x + shift: the gradient does not depend on the number of threads
        if weight is not None:
            position = torch.where(weight > 0, position, 1)
        center = position.detach().round()
        t = position - center
        fractions = [0.5 * (0.5 - t) ** 2, 0.75 - t**2, 0.5 * (0.5 + t) ** 2]
        return (center - 1).long().clamp(0, self.bins - 3), fractions


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-12).log()).sum()
