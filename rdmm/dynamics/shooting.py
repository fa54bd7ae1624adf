"""Shooting of geodesics: what LDDMM and RDMM share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from rdmm.dynamics.base import InitialConditions, Snapshot
from rdmm.dynamics.epdiff import EPDiff, Eulerian
from rdmm.dynamics.images import ImageDynamics
from rdmm.dynamics.semi_lagrangian import SemiLagrangian
from rdmm.dynamics.solvers import State
from rdmm.regularizer.metric import Metric
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Dense
from rdmm.types import Tensor


@dataclass(frozen=True)
class Geodesic(ImageDynamics):
    """Geodesics of a metric, by EPDiff."""

    @abstractmethod
    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[Metric, Tensor | None]:
        """The metric and the pre-weights h(0)."""

    def _trajectory(
        self, ic: InitialConditions, source: Image, times: Sequence[float], inverse: bool = False
    ) -> tuple[EPDiff, list[State]]:
        """The equation, and (m, u[, U], ...) at ``times``."""
        grid = ic.grid(source)
        ops.require_finite(ic.momentum, "the initial momentum")
        metric, h0 = self._initial(ic, grid)
        equation = EPDiff(metric, h0, grid.identity(ic.momentum))
        system = Eulerian(equation) if self.integrator.eulerian else SemiLagrangian(equation)
        return equation, self.integrator.trajectory(system, system.start(ic.momentum, inverse), [] if h0 is None else [h0], times)

    @final
    def shoot(self, ic: InitialConditions, source: Image) -> Dense:
        """phi(1): target -> source, on the grid of ``source``."""
        equation, ((_, u, *_),) = self._trajectory(ic, source, (1.0,))
        return Dense(u, equation.metric.grid).refined(source.grid)

    @final
    def flow(self, ic: InitialConditions, source: Image) -> tuple[Dense, Dense]:
        """phi(1) and its inverse, both from the same geodesic, on the grid of ``source``."""
        equation, ((_, u, w, *_),) = self._trajectory(ic, source, (1.0,), inverse=True)
        grid = equation.metric.grid
        return Dense(u, grid).refined(source.grid), Dense(w, grid).refined(source.grid)

    @final
    def energy(self, ic: InitialConditions, source: Image) -> Tensor:
        """(b,) <m0, v0>."""
        if ic.start is not None:
            return ic.start.energy
        grid = ic.grid(source)
        metric, h0 = self._initial(ic, grid)
        equation = EPDiff(metric, h0, grid.identity(ic.momentum))
        return ops.inner(ic.momentum, equation.velocity(ic.momentum, equation.weights(h0)), grid)

    @final
    def geodesic(self, ic: InitialConditions, source: Image, times: Sequence[float]) -> list[Snapshot]:
        """The geodesic at increasing ``times`` in [0, 1]."""
        equation, states = self._trajectory(ic, source, times)
        return [equation.snapshot(t, y) for t, y in zip(times, states, strict=True)]
