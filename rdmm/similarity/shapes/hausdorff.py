"""Divergences of measures by distances to the nearest atom: soft minimum and Hausdorff, model (41)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

from rdmm.kernels.pairwise import half_squared_distance, reduce_pairs
from rdmm.similarity.shapes.divergence import MeasureDivergence, weights_of
from rdmm.spatial.measure import Measure
from rdmm.types import ConfigError, Tensor, require_length


class _DistanceFieldDivergence(MeasureDivergence):
    """1/2 <a - b, phi_b - phi_a>, where each measure a has a distance field phi_a (Feydy and Trouve, MICCAI 2018)."""

    blur: float

    @abstractmethod
    def _log_weights(self, x: Tensor, a: Tensor) -> Tensor:
        """h_j of phi(z) = -eps log sum_j exp(h_j - |z - x_j|^2 / (2 eps)); (n,)."""

    @final
    def _item(self, moved: Measure, target: Measure) -> Tensor:
        (x, a), (y, b) = ((m.points[0].T.contiguous(), weights_of(m) / weights_of(m).sum()) for m in (moved, target))
        ha, hb = self._log_weights(x, a), self._log_weights(y, b)
        on_a = soft_minimum(x, y, hb, self.blur) - soft_minimum(x, x, ha, self.blur)
        on_b = soft_minimum(y, x, ha, self.blur) - soft_minimum(y, y, hb, self.blur)
        return 0.5 * ((a * on_a).sum() + (b * on_b).sum())


def soft_minimum(x: Tensor, y: Tensor, h: Tensor, blur: float) -> Tensor:
    """-eps log sum_j exp(h_j - |x_i - y_j|^2 / (2 eps)), (n,); gradients flow to x, y and h."""
    eps = blur**2
    return -eps * reduce_pairs(lambda p, q: half_squared_distance(p, q) * (-1 / eps), x, y, h, log_sum=True)


@final
@dataclass(frozen=True)
class SoftMinDivergence(_DistanceFieldDivergence):
    """eps-SoftMin: phi_a(z) = -eps log sum_j a_j exp(-|z - x_j|^2 / (2 eps)), the log-likelihood of a mixture of Gaussians.

    Args:
        blur: sqrt(eps). Each measure is scaled to mass 1.
    """

    blur: float = 0.05

    def __post_init__(self) -> None:
        require_length("similarity.blur", self.blur)

    def _log_weights(self, x: Tensor, a: Tensor) -> Tensor:
        return a.clamp_min(1e-37).log()


@final
@dataclass(frozen=True)
class HausdorffDivergence(_DistanceFieldDivergence):
    """eps-Hausdorff: phi_a the Sinkhorn potential p of (a, a), at every point; 0 <= H <= S (Feydy et al., AISTATS 2019).

    Args:
        blur: sqrt(eps). Each measure is scaled to mass 1.
        iterations: number of iterations for p; each halves the error, and gradients flow through all.
    """

    blur: float = 0.05
    iterations: int = 12

    def __post_init__(self) -> None:
        require_length("similarity.blur", self.blur)
        if self.iterations < 1:
            raise ConfigError(f"similarity.iterations must be at least 1, not {self.iterations}")

    def _log_weights(self, x: Tensor, a: Tensor) -> Tensor:
        log_a, eps = a.clamp_min(1e-37).log(), self.blur**2
        p = 0.5 * soft_minimum(x, x, log_a, self.blur)
        for _ in range(self.iterations):
            p = 0.5 * (p + soft_minimum(x, x, log_a + p / eps, self.blur))
        return log_a + p / eps
