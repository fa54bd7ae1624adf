"""Kernel distances of measures, model (40)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch

from rdmm.kernels.pairwise import Pairwise, half_squared_distance, reduce_pairs
from rdmm.similarity.shapes.divergence import MAX_POWER, MeasureDivergence, directions_of, weights_of
from rdmm.spatial.measure import Measure
from rdmm.types import ConfigError, Tensor, require_finite_fields, require_length, require_whole

Kernel = Literal["gaussian", "laplacian", "energy"]
Directions = Literal["none", "current", "varifold"]


@final
@dataclass(frozen=True)
class KernelDistance(MeasureDivergence):
    """1/2 |a - b|^2 in the dual norm of a kernel k: 1/2 (sum_ij k a_i a_j - 2 sum_ij k a_i b_j + sum_ij k b_i b_j).

    Args:
        kernel: ``gaussian`` exp(-|x - y|^2 / (2 sigma^2)), ``laplacian`` exp(-|x - y| / sigma), ``energy`` -|x - y|. ``energy`` scales
            each measure to mass 1: between measures of different masses it has no lower bound.
        sigmas: widths of the kernels that are summed, in the unit of the points; ``energy`` ignores them.
        directions: ``none``; ``current``: the kernel times <u, v>; ``varifold``: the kernel times <u, v>^k, which ignores orientations.
            ``energy`` takes ``none`` only: times these it has no lower bound.
        k: the exponent of varifolds, an even number; the larger, the less do directions count that differ.
    """

    kernel: Kernel = "gaussian"
    sigmas: Sequence[float] = (0.1,)
    directions: Directions = "none"
    k: int = 2

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if require_whole("similarity.k", self.k, 1, MAX_POWER) % 2:
            raise ConfigError(f"similarity.k must be even, so that opposite directions are the same, not {self.k}; or directions=current")
        if self.k != 2 and self.directions != "varifold":
            raise ConfigError(f"similarity.k={self.k} has an effect with directions=varifold only, not with {self.directions!r}")
        if self.kernel not in get_args(Kernel):
            raise ConfigError(f"similarity.kernel must be one of {', '.join(get_args(Kernel))}, not {self.kernel!r}")
        if self.directions not in get_args(Directions):
            raise ConfigError(f"similarity.directions must be one of {', '.join(get_args(Directions))}, not {self.directions!r}")
        if self.kernel == "energy" and self.directions != "none":
            raise ConfigError(
                f"similarity.directions={self.directions} with the energy kernel has no lower bound; choose directions=none, or "
                "similarity=kernel with kernel=gaussian or laplacian"
            )
        if self.kernel != "energy" and not self.sigmas:
            raise ConfigError("similarity.sigmas must be one length or more, not []")
        for sigma in self.sigmas:
            require_length("similarity.sigmas", sigma)

    def _formula(self, d: int) -> Pairwise:
        def values(p: Any, q: Any) -> Any:
            squares = half_squared_distance(p[:, :, :d], q[:, :, :d]) * 2
            if self.kernel == "energy":
                out = -((squares + 1e-20) ** 0.5)
            elif self.kernel == "laplacian":
                out = sum((-((squares + 1e-20) ** 0.5) * (1 / s)).exp() for s in self.sigmas)
            else:
                out = sum((squares * (-0.5 / s**2)).exp() for s in self.sigmas)
            if self.directions == "none":
                return out
            return out * (p[:, :, d:] * q[:, :, d:]).sum(-1) ** (1 if self.directions == "current" else self.k)

        return values

    def _masses(self, m: Measure) -> Tensor:
        weights = weights_of(m)
        return weights / weights.sum() if self.kernel == "energy" else weights

    def _item(self, moved: Measure, target: Measure) -> Tensor:
        x, y = (m.points[0].T if self.directions == "none" else torch.cat([m.points[0].T, directions_of(m)], 1) for m in (moved, target))
        a, b = (self._masses(m).unsqueeze(1) for m in (moved, target))
        formula = self._formula(moved.ndim)
        xx, xy, yy = (
            (p * reduce_pairs(formula, s, t, q, log_sum=False)).sum() for s, p, t, q in ((x, a, x, a), (x, a, y, b), (y, b, y, b))
        )
        return 0.5 * (xx + yy) - xy


@final
@dataclass(frozen=True)
class EnergyDistance(MeasureDivergence):
    """KernelDistance with the kernel -|x - y|, which has no width, of measures scaled to mass 1.

    Args:
        directions: only ``none`` is possible.
    """

    directions: Directions = "none"

    def __post_init__(self) -> None:
        KernelDistance("energy", directions=self.directions)

    def _item(self, moved: Measure, target: Measure) -> Tensor:
        return KernelDistance("energy", directions=self.directions)._item(moved, target)
