"""Correlation ratio (Roche, Malandain, Pennec, Ayache, MICCAI 1998) with a polynomial as the relation of the intensities, model (54)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rdmm.kernels.available import has_kernels
from rdmm.similarity.statistics import VARIANCE_FLOOR, mean, overlap, standardized
from rdmm.spatial.image import Image, Part
from rdmm.types import ConfigError, Tensor

MAX_DEGREE = 6
"""Higher powers of the intensities are numerically dependent."""

LINEAR_SHARE = 0.95
"""On 17 real pairs of one contrast, a line explained at least .98 of what a cubic did, on a T1 and a proton density image .91 to .93, with
simulated T2 contrasts at most .84 (benchmarks/README.md)."""


@dataclass(frozen=True)
class CorrelationRatio:
    """The share of the variance of each image that no polynomial of the other explains, mean of both ways and over channels; (b,).

    Whatever the sign and the shape of the relation of the intensities, it is small where the images agree, and about 1 for unrelated
    images. Degree 1 is NCC. The relation has few parameters, so that small images and few voxels are enough.

    Args:
        degree: of the polynomials, 1 to 6.
        fused: whether the compiled kernel is used; None: where it can be.
    """

    degree: int = 3
    fused: bool | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.degree <= MAX_DEGREE:
            raise ConfigError(f"similarity.degree must be 1 to {MAX_DEGREE}, not {self.degree}")

    def __call__(self, moved: Image, target: Image) -> Tensor:
        weight = overlap(moved, target)
        if has_kernels(moved.data) if self.fused is None else self.fused:
            from rdmm.kernels.pointwise.polynomials import correlation_ratio

            return correlation_ratio(moved.data, target.data, weight, VARIANCE_FLOOR, self.degree)
        a, b = (standardized(x.data, weight) for x in (moved, target))
        return ((self._unexplained(a, b, weight) + self._unexplained(b, a, weight)) / 2).flatten(1).mean(1)

    def is_linear(self, moved: Image, target: Image) -> bool:
        """Whether a line explains LINEAR_SHARE of what these polynomials do, in every contrast of two images that are roughly aligned."""
        parts = target.parts or (Part(target.data.shape[1]),)
        contrasts = [(a, b) for part, a, b in zip(parts, moved.split(), target.split(), strict=True) if not part.is_labels]
        line = CorrelationRatio(1)
        with torch.no_grad():
            return all(bool((1 - line(a, b) >= LINEAR_SHARE * (1 - self(a, b))).all()) for a, b in contrasts)

    def _unexplained(self, x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """The share (b, c, 1...) of the variance of y (b, c, *s) that the best polynomial of x leaves.

        Means and coefficients are constants for the gradient: they minimize the residual, so that it does not change with them to first
        order.
        """
        powers = [x]
        for _ in range(self.degree - 1):
            powers.append(powers[-1] * x)
        centered = [p - mean(p, weight).detach() for p in powers]
        with torch.no_grad():
            coefficients = _least_squares(centered, y, weight)
        residual = y - sum(c * p for c, p in zip(coefficients, centered, strict=True))
        return (mean(residual**2, weight) + VARIANCE_FLOOR) / (mean(y**2, weight) + VARIANCE_FLOOR)


def _least_squares(basis: list[Tensor], y: Tensor, weight: Tensor | None) -> list[Tensor]:
    """Coefficients (b, c, 1...) of the basis, (b, c, *s) each, whose sum is nearest to y."""
    products = {(i, j): mean(basis[i] * basis[j], weight) for i in range(len(basis)) for j in range(i, len(basis))}
    rows = [[products[min(i, j), max(i, j)] for j in range(len(basis))] for i in range(len(basis))]
    gram = torch.stack([torch.stack(row, -1) for row in rows], -2).double()
    right = torch.stack([mean(p * y, weight) for p in basis], -1).double()
    # images of few intensities: dependent powers; masks that do not overlap: NaN, which the residual keeps
    found = torch.linalg.pinv(gram.nan_to_num(), hermitian=True, rtol=1e-6) @ right[..., None]
    return list(found[..., 0].to(y).unbind(-1))
