"""RDMM: geodesics of a metric that moves with the anatomy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

from rdmm.dynamics.base import InitialConditions
from rdmm.dynamics.integrator import Integrator
from rdmm.dynamics.shooting import Geodesic
from rdmm.regularizer.metric import Metric
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.regularizer.weights import constant, local_sigma, smoothed
from rdmm.spatial.grid import Grid
from rdmm.types import ConfigError, Tensor


@final
@dataclass(frozen=True)
class RDMM(Geodesic):
    """EPDiff of a metric that moves with the anatomy: v = K(w) m, w_i = G_sigma * h_i, h_i(t) = h_i(0) ∘ phi(t), and the
    source term + sum_i G_sigma * (m . nu_i) grad h_i: RDMM (3.10), model (12), computed by rdmm/dynamics/epdiff.py.

    Args:
        weight_sigma: sigma of G, in the smoother's unit.
    """

    smoother: MultiGaussian
    integrator: Integrator = field(default_factory=Integrator)
    weight_sigma: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.weight_sigma < math.inf:
            raise ConfigError(f"dynamics.weight_sigma must be >= 0, not {self.weight_sigma}")

    def preweights(self, ic: InitialConditions, grid: Grid) -> Tensor:
        """h(0): the given ones, or the smoother's own everywhere."""
        h = ic.weights
        if h is None:
            return constant(self.smoother.weights, grid, ic.momentum)
        if h.shape[1:] != (len(self.smoother.sigmas), *grid.shape):
            raise ConfigError(f"pre-weights are (b, {len(self.smoother.sigmas)}, *{grid.shape}), one per Gaussian; got {tuple(h.shape)}")
        return h

    def local_sigma(self, h: Tensor, grid: Grid) -> Tensor:
        """sigma(x) of pre-weights, (b, 1, *s) in millimetres."""
        w = smoothed(h, self.weight_scale(grid), grid)
        return local_sigma(w, self.smoother.scales(grid)) * grid.length

    def weight_scale(self, grid: Grid) -> float:
        """sigma of G in domain units."""
        return self.weight_sigma / grid.length if self.smoother.unit == "mm" else self.weight_sigma

    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[Metric, Tensor | None]:
        return Metric(self.smoother, self.weight_scale(grid), grid), self.preweights(ic, grid)
