"""Stationary velocity fields, model (14)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from rdmm.dynamics.base import InitialConditions, Snapshot
from rdmm.dynamics.images import ImageDynamics
from rdmm.dynamics.semi_lagrangian import backtrace
from rdmm.dynamics.solvers import State
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Dense
from rdmm.types import Tensor


def exponential(v: Tensor, grid: Grid, steps: int) -> Tensor:
    """Displacement of the flow of -v over t in [0, 1], by scaling and squaring (model (14)), with at least ``steps`` steps."""
    squarings = max(0, math.ceil(math.log2(steps)))
    identity = grid.identity(v)
    u = backtrace(v, 2.0**-squarings, grid)
    for _ in range(squarings):
        u = ops.compose(u, u, grid, identity)
    return u


@final
@dataclass(frozen=True)
class SVF(ImageDynamics):
    """Stationary velocity field: v = K m0, d_t phi = -(D phi) v; model (14)."""

    conserves_energy: ClassVar[bool] = False

    def _velocity(self, ic: InitialConditions, source: Image) -> tuple[Tensor, Grid]:
        grid = ic.grid(source)
        if ic.start is not None:
            ops.require_finite(ic.start.velocity, "the velocity")
            return ic.start.velocity, grid
        ops.require_finite(ic.momentum, "the initial momentum")
        return self.smoother(ic.momentum, grid), grid

    def _flow(self, v: Tensor, grid: Grid, t: float = 1.0) -> Dense:
        if not self.integrator.eulerian:
            return Dense(exponential(v * t, grid, self.integrator.steps), grid)

        def rate(y: State) -> State:
            ops.require_finite(y[0], "the map")
            return (-t * (v + ops.advect(y[0], v, grid)),)

        return Dense(self.integrator(rate, (torch.zeros_like(v),), (v,))[0], grid)

    def shoot(self, ic: InitialConditions, source: Image) -> Dense:
        """phi: target -> source, on the grid of ``source``."""
        return self._flow(*self._velocity(ic, source)).refined(source.grid)

    def flow(self, ic: InitialConditions, source: Image) -> tuple[Dense, Dense]:
        """phi and its inverse, the flow of -v, on the grid of ``source``."""
        v, grid = self._velocity(ic, source)
        return self._flow(v, grid).refined(source.grid), self._flow(-v, grid).refined(source.grid)

    def energy(self, ic: InitialConditions, source: Image) -> Tensor:
        """(b,) <m0, v>."""
        if ic.start is not None:
            return ic.start.energy
        v, grid = self._velocity(ic, source)
        return ops.inner(ic.momentum, v, grid)

    def geodesic(self, ic: InitialConditions, source: Image, times: Sequence[float]) -> list[Snapshot]:
        """The path at ``times``. The velocity is stationary, and so is the momentum."""
        v, grid = self._velocity(ic, source)
        return [Snapshot(t, grid, ic.momentum, v, self._flow(v, grid, t).displacement) for t in times]
