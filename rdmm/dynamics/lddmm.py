"""LDDMM: geodesics of a constant metric."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from rdmm.dynamics.base import InitialConditions
from rdmm.dynamics.integrator import Integrator
from rdmm.dynamics.shooting import Geodesic
from rdmm.regularizer.metric import Metric
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.spatial.grid import Grid
from rdmm.types import ConfigError, Tensor


@final
@dataclass(frozen=True)
class LDDMM(Geodesic):
    """EPDiff of a constant metric: d_t m = -[(div v) m + (Dv)^T m + (Dm) v], v = K m; model (11)."""

    smoother: MultiGaussian
    integrator: Integrator = field(default_factory=Integrator)

    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[Metric, Tensor | None]:
        if ic.weights is not None:
            raise ConfigError("these initial conditions hold pre-weights: use dynamics=rdmm, or leave the pre-weights out")
        return Metric(self.smoother, 0.0, grid), None
