"""Penalties of the pre-weights, Reg(h(0)) of model (22)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from rdmm.regularizer.smoother import MultiGaussian
from rdmm.regularizer.weights import smooth
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid, constant
from rdmm.types import ConfigError, Tensor, require_finite_fields


class Penalty(Protocol):
    """(pre-weights h(0) (b, n, *s), weights' sigma in domain units, smoother, grid, step) -> (b,)."""

    def __call__(self, h: Tensor, weight_sigma: float, smoother: MultiGaussian, grid: Grid, step: int) -> Tensor: ...


def omt(w: Tensor, smoother: MultiGaussian, grid: Grid, power: float = 1.0) -> Tensor:
    """(b,) OMT(h), model (25): |log(sigma_N / sigma_1)|^-s mean_x sum_i w_i^2 |log(sigma_N / sigma_i)|^s; s is ``power``.

    The penalty is large where small Gaussians have weight.
    """
    sigmas = smoother.scales(grid)
    cost = [abs(math.log(sigmas[-1] / s)) ** power for s in sigmas]
    price = constant(tuple(cost), w) / max(cost[0], 1e-12)
    return (w.square().flatten(2).mean(2) * price).sum(1)


def deviation(w: Tensor, smoother: MultiGaussian, grid: Grid) -> Tensor:
    """Range(h) = integral of |w - w0|^2 over the domain, w0 the smoother's own weights, model (24); (b,)."""
    w0 = constant(tuple(smoother.weights), w).sqrt()
    return ops.integral((w - w0.view(1, -1, *(1,) * grid.ndim)).square(), grid)


def total_variation(h: Tensor, grid: Grid) -> Tensor:
    """Integral of sum_i |grad h_i|, model (26), smoothed near 0 by 1e-3 per domain unit; (b,)."""
    squares = [g.square() for g in ops.jacobian(h, grid)]
    return ops.integral((sum(squares[1:], squares[0]) + 1e-6).sqrt() - 1e-3, grid)


@dataclass(frozen=True)
class NoPenalty:
    """No penalty: pre-weights are free, or there are none."""

    def __call__(self, h: Tensor, weight_sigma: float, smoother: MultiGaussian, grid: Grid, step: int) -> Tensor:
        return h.new_zeros(h.shape[0])


@dataclass(frozen=True)
class WeightPenalty:
    """range * l_T * Range(h) + omt * (1 - l_T) * OMT(h) + tv * TV(h), model (22), per unit of similarity.

    The objective multiplies it by the similarity term: the same factors serve any similarity, intensity scale and similarity weight.
    l_T = K / (K + exp(T / K)) passes from Range to OMT, T the iteration or epoch. Without Range, OMT acts from the start.

    Args:
        range: C_Range of the paper.
        omt: C_OMT of the paper.
        tv: factor of the total variation.
        power: exponent s of OMT.
        decay: K of the schedule, in iterations or epochs.

    Raises:
        ConfigError: a negative factor, or a power or decay that is not positive.
    """

    range: float = 0.0
    omt: float = 2.0
    tv: float = 0.0
    power: float = 1.0
    decay: float = 10.0

    def __post_init__(self) -> None:
        require_finite_fields(self)
        for name in ("range", "omt", "tv"):
            if getattr(self, name) < 0:
                raise ConfigError(f"penalty.{name} must be >= 0, not {getattr(self, name)}")
        for name in ("power", "decay"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"penalty.{name} must be > 0, not {getattr(self, name)}")

    def schedule(self, step: int) -> float:
        """l_T, model (23): near 1 at first, which keeps the weights at their start; later 0."""
        return self.decay / (self.decay + math.exp(min(step / self.decay, 700.0)))

    def __call__(self, h: Tensor, weight_sigma: float, smoother: MultiGaussian, grid: Grid, step: int) -> Tensor:
        w = smooth(h, weight_sigma, grid)
        early = self.schedule(step) if self.range else 0.0
        total = self.omt * (1 - early) * omt(w, smoother, grid, self.power)
        if self.range:
            total = total + self.range * early * deviation(w, smoother, grid)
        return total + self.tv * total_variation(h, grid) if self.tv else total
