"""The equations of geodesics (MODEL.md section 3): EPDiff for the momentum m, transport for the map phi = id + u.

    d_t m = -ad*_v m + sum_i G * (m . nu_i) grad h_i,    d_t phi = -(D phi) v,    h_i(t) = h_i(0) ∘ phi(t)

Two forms, of the same rate for m in flux form, which central differences turn into a conservation law: <ad*_v m, v> = 0 to
rounding, whatever the resolution.

*Eulerian*: (m, u) as one system for torchdiffeq. Central differences of u make ripples where it is steep, and folds.
*SemiLagrangian*: m by the classical Runge-Kutta method; the map by composition, phi <- phi ∘ psi, with psi traced back along
the velocity in the middle of the step. A composition of maps near the identity makes no ripples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdmm import ops
from rdmm.grid import Grid
from rdmm.shooting import State
from rdmm.smoother import MultiGaussian
from rdmm.types import Tensor
from rdmm.weights import smoothed


@dataclass(frozen=True, eq=False)
class Moment:
    """The geodesic at one time: momentum, velocity (b, d, *s), displacement of phi (b, d, *s), weights w (b, n, *s) or None."""

    t: float
    momentum: Tensor
    velocity: Tensor
    displacement: Tensor
    weights: Tensor | None = None


def coadjoint_rate(m: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """-ad*_v m = -[(div v) m + (Dv)^T m + (Dm) v], the first and last in flux form: sum_j d_j (v_j m).

    The flux takes the negative transpose of the differences that (Dv)^T takes, so that <ad*_v m, v> = 0 to rounding; inside
    the grid the two are the same, at the walls the flux is that of a momentum which is 0 beyond them.
    """
    if ops.compiled(m):
        from rdmm import epdiff

        return epdiff.momentum_rate(m, v, grid.spacing)
    turned = torch.stack([(dv * m).sum(1) for dv in ops.jacobian(v, grid)], 1)
    return sum((ops.partial_transpose(v[:, j : j + 1] * m, j, grid) for j in range(grid.ndim)), -turned)


def map_rate(u: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """-(D phi) v for phi = id + u."""
    if ops.compiled(u):
        from rdmm import epdiff

        return epdiff.map_rate(u, v, grid.spacing)
    return -(v + ops.advect(u, v, grid))


def backtrace(v: Tensor, dt: float, grid: Grid, identity: Tensor) -> Tensor:
    """Displacement of psi(x) = x - dt v(x - dt/2 v(x)): where the point that arrives at x was dt before."""
    return -dt * ops.sample(v, identity - 0.5 * dt * v, grid)


@dataclass(frozen=True)
class Metric:
    """v = K m, or K(w) m with w_i = G_sigma * h_i where there are pre-weights."""

    smoother: MultiGaussian
    weight_sigma: float
    grid: Grid

    def weights(self, h: Tensor | None) -> Tensor | None:
        return None if h is None else smoothed(h, self.weight_sigma, self.grid)

    def velocity(self, m: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """v (b, d, *s) and the nu_i = K_{sigma_i} * (w_i m), (b, n, d, *s) (None where the weights are constant)."""
        w = self.weights(h)
        if w is None:
            return self.smoother(m, self.grid), None
        nu = self.smoother.parts(m, w, self.grid)
        return (w.unsqueeze(2) * nu).sum(1), nu

    def source(self, m: Tensor, nu: Tensor, h: Tensor) -> Tensor:
        """sum_i q_i grad h_i, with q_i = G_sigma * (m . nu_i) half of dE / dh_i."""
        q = smoothed((m.unsqueeze(1) * nu).sum(2), self.weight_sigma, self.grid)
        return torch.stack([(q * dh).sum(1) for dh in ops.jacobian(h, self.grid)], 1)


@dataclass(frozen=True, eq=False)
class EPDiff:
    """The rate of the momentum, of a metric that moves with phi.

    Args:
        h0: pre-weights h(0) (b, n, *s), or None: constant weights (LDDMM).
    """

    metric: Metric
    h0: Tensor | None
    identity: Tensor

    def carried_weights(self, u: Tensor) -> Tensor | None:
        """h(t) = h(0) ∘ phi(t)."""
        return None if self.h0 is None else ops.sample(self.h0, self.identity + u, self.metric.grid)

    def velocity(self, m: Tensor, u: Tensor) -> Tensor:
        return self.metric.velocity(m, self.carried_weights(u))[0]

    def __call__(self, m: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """(d_t m, v) at phi = id + u."""
        grid = self.metric.grid
        ops.require_finite(m, "the momentum")
        h = self.carried_weights(u)
        v, nu = self.metric.velocity(m, h)
        rate = coadjoint_rate(m, v, grid)
        if h is not None and nu is not None:
            rate = rate + self.metric.source(m, nu, h)
        return rate, v

    def moment(self, t: float, y: State) -> Moment:
        m, u = y[:2]
        h = self.carried_weights(u)
        return Moment(t, m, self.metric.velocity(m, h)[0], u, self.metric.weights(h))


@dataclass(frozen=True, eq=False)
class Eulerian:
    """d_t (m, u[, U]), with phi^{-1} = id + U: torchdiffeq's right-hand side."""

    equation: EPDiff

    def __call__(self, _: Tensor, y: State) -> State:
        m, u = y[:2]
        grid = self.equation.metric.grid
        rate, v = self.equation(m, u)
        rates = (rate, map_rate(u, v, grid))
        return rates if len(y) == 2 else (*rates, ops.sample(v, self.equation.identity + y[2], grid))


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
