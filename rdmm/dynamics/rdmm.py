"""RDMM: geodesics of a metric that moves with the anatomy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from rdmm.dynamics.base import InitialConditions
from rdmm.dynamics.images import PreweightedDynamics
from rdmm.dynamics.shooting import Geodesic
from rdmm.regularizer.metric import Metric
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor


@final
@dataclass(frozen=True)
class RDMM(Geodesic, PreweightedDynamics):
    """EPDiff of a metric that moves with the anatomy: v = K(w) m, w_i = G_sigma * h_i, h_i(t) = h_i(0) ∘ phi(t), and the
    source term + sum_i G_sigma * (m . nu_i) grad h_i: RDMM (3.10), model (12), computed by rdmm/dynamics/epdiff.py.

    Args:
        weight_sigma: sigma of G.
        weight_unit: unit of weight_sigma: ``domain`` or ``mm``, whatever the unit of the smoother's sigmas.
    """

    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[Metric, Tensor | None]:
        return self.metric(grid), self.preweights(ic, grid)
