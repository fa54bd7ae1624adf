"""Semi-Lagrangian steps, model (17): the momentum by Runge-Kutta, the map by composition."""

from __future__ import annotations

from dataclasses import dataclass

from rdmm.dynamics.epdiff import EPDiff
from rdmm.dynamics.integrator import State, runge_kutta_step
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor


def backtrace(v: Tensor, dt: float, grid: Grid, identity: Tensor) -> Tensor:
    """Displacement of psi(x) = x - dt v(x - dt/2 v(x)), model (17): the point that arrives at x was at psi(x) a time dt before."""
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
        """m by Runge-Kutta; phi <- phi ∘ psi with psi along the velocity in the middle of the step.

        Within the step, the weights are those at phi ∘ psi(c dt), with psi along the latest velocity.
        """
        u, grid, identity = y[1], self.equation.metric.grid, self.equation.identity
        velocities: list[Tensor] = []

        def map_at(c: float) -> Tensor:
            """The map at a fraction c of the step; constant weights do not need it."""
            if self.equation.h0 is None or not velocities:
                return u
            return ops.compose(u, backtrace(velocities[-1], c * dt, grid, identity), grid, identity)

        def rate(c: float, state: State) -> State:
            k, v = self.equation(state[0], map_at(c))
            velocities.append(v)
            return (k,)

        (m,) = runge_kutta_step(rate, y[:1], dt)
        v = velocities[2]  # the better one of the two in the middle of the step
        u = ops.compose(u, backtrace(v, dt, grid, identity), grid, identity)
        inverse = [ops.compose(backtrace(v, -dt, grid, identity), w, grid, identity) for w in y[2:]]
        return m, u, *inverse
