"""Semi-Lagrangian steps, model (17): the momentum by Runge-Kutta, the map by composition."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdmm.dynamics.epdiff import EPDiff, Weights, map_rate
from rdmm.dynamics.solvers import State
from rdmm.spatial.grid import Grid
from rdmm.spatial.high_order import cubic
from rdmm.types import Tensor


def backtrace(v: Tensor, dt: float, grid: Grid) -> Tensor:
    """Displacement of psi = id - dt v + dt^2/2 (Dv) v, model (17): the point that arrives at x was at psi(x) a time dt before.

    It is the midpoint rule x - dt v(x - dt/2 v) to second order, by differences instead of sampling.
    """
    return dt * map_rate(-0.5 * dt * v, v, grid)


@dataclass(frozen=True, eq=False)
class SemiLagrangian:
    """Steps of (m, u[, U][, h, w]), with phi^{-1} = id + U and, of a metric that is advected, its weights at phi = id + u."""

    equation: EPDiff

    def start(self, m: Tensor, inverse: bool) -> State:
        """The state at t = 0, where phi is the identity."""
        zero = torch.zeros_like(m)
        return (m, zero, *[zero] * inverse, *(self.equation.weights(self.equation.h0) or ()))

    def speed(self, y: State) -> float:
        """Voxels that the velocity crosses in a unit of time, summed over the axes, where it is fastest."""
        v = self.equation.velocity(y[0], self._split(y)[1])
        return float(sum(v[:, j].abs() / h for j, h in enumerate(self.equation.metric.grid.spacing)).max())  # type: ignore[union-attr]

    def _split(self, y: State) -> tuple[State, Weights | None]:
        return (y, None) if self.equation.h0 is None else (y[:-2], Weights(*y[-2:]))

    def step(self, y: State, dt: float) -> State:
        """m by Runge-Kutta; phi <- phi ∘ psi, with psi along the velocity in the middle of the step, and h(0) ∘ phi at its end.

        The pre-weights in the middle are h ∘ (id - dt/2 v), of second order in dt as psi is. They are not carried on, so that their error
        does not add up.
        """
        (m, u, *inverse), weights = self._split(y)
        equation, grid, identity = self.equation, self.equation.metric.grid, self.equation.identity
        k1, v = equation(m, weights)
        middle = equation.weights(None if weights is None else cubic.sample(weights.h, identity - 0.5 * dt * v, grid))
        k2, v = equation(m + 0.5 * dt * k1, middle)
        k3, v = equation(m + 0.5 * dt * k2, middle)
        u = cubic.compose(u, backtrace(v, dt, grid), grid, identity)
        inverse = [cubic.compose(backtrace(v, -dt, grid), w, grid, identity) for w in inverse]
        end = equation.advected_weights(u)
        k4, _ = equation(m + dt * k3, end)
        return (m + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), u, *inverse, *(end or ()))
