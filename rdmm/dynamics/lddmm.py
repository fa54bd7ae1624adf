"""LDDMM: geodesics of a constant metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from rdmm.dynamics.base import InitialConditions
from rdmm.dynamics.shooting import Geodesic
from rdmm.regularizer.metric import Metric
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import ConfigError, Tensor


@final
@dataclass(frozen=True)
class LDDMM(Geodesic):
    """EPDiff of a constant metric: d_t m = -[(div v) m + (Dv)^T m + (Dm) v], v = K m; model (11)."""

    def complete(self, ic: InitialConditions, source: Image) -> InitialConditions:
        """``ic`` itself; ConfigError where it holds pre-weights."""
        _require_no_preweights(ic)
        return ic

    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[Metric, Tensor | None]:
        _require_no_preweights(ic)
        return Metric(self.smoother, 0.0, grid), None


def _require_no_preweights(ic: InitialConditions) -> None:
    if ic.weights is not None:
        raise ConfigError("these initial conditions hold pre-weights: use dynamics=rdmm, or leave the pre-weights out")
