"""Semi-Lagrangian steps, model (17): the momentum by Runge-Kutta, the map by composition."""

from __future__ import annotations

from dataclasses import dataclass

from rdmm.dynamics.epdiff import EPDiff
from rdmm.dynamics.integrator import State
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor


def backtrace(v: Tensor, dt: float, grid: Grid, identity: Tensor) -> Tensor:
    """Displacement of psi(x) = x - dt v(x - dt/2 v(x)), model (17): where the point that arrives at x was dt before."""
    return -dt * ops.sample(v, identity - 0.5 * dt * v, grid)


@dataclass(frozen=True, eq=False)
class SemiLagrangian:
    """Steps of (m, u[, U])."""

    equation: EPDiff

    def speed(self, y: State) -> float:
        """Voxels that the velocity crosses in a unit of time, summed over the axes, where it is fastest."""
        v = self.equation.velocity(*y[:2])
        return float(sum(v[:, j].abs() / h for j, h in enumerate(self.equation.metric.grid.spacing)).max())  # type: ignore[union-attr]

    def step(self, y: State, dt: float) -> State:
        """m by Runge-Kutta; within the step, the weights are those at phi ∘ psi(c dt), psi along the latest velocity."""
        m, u = y[:2]
        grid, identity, equation = self.equation.metric.grid, self.equation.identity, self.equation

        def moved(v: Tensor, share: float) -> Tensor:
            """The map ``share`` of a step later; constant weights do not ask for it."""
            return u if equation.h0 is None else ops.compose(u, backtrace(v, share * dt, grid, identity), grid, identity)

        k1, v1 = equation(m, u)
        k2, v2 = equation(m + dt / 2 * k1, moved(v1, 0.5))
        k3, v3 = equation(m + dt / 2 * k2, moved(v2, 0.5))
        k4, _ = equation(m + dt * k3, moved(v3, 1.0))
        m = m + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        u = ops.compose(u, backtrace(v3, dt, grid, identity), grid, identity)
        inverse = [ops.compose(backtrace(v3, -dt, grid, identity), w, grid, identity) for w in y[2:]]
        return m, u, *inverse
