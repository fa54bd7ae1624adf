"""The equations of geodesics: EPDiff for the momentum m, transport for the map phi = id + u.

    d_t m = -ad*_v m + sum_i G * (m . nu_i) grad h_i        RDMM (3.10), model (12); without the sum, LDDMM: model (11)
    d_t phi = -(D phi) v                                    model (10)
    h_i(t) = h_i(0) ∘ phi(t)                                model (13): the pre-weights are advected with the map

Two solvers share one rate for m. It is in flux form, model (16): <ad*_v m, v> = 0 to rounding, at any resolution.

*Eulerian*: (m, u) as one system. Differences of u make ripples where it is steep, and folds.
*SemiLagrangian*: m by the classical Runge-Kutta method; the map by composition, phi <- phi ∘ psi, with psi traced back along
the velocity in the middle of the step. A composition of maps near the identity makes no ripples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from rdmm.dynamics.base import Snapshot
from rdmm.dynamics.solvers import State
from rdmm.kernels.available import has_kernels
from rdmm.regularizer.metric import Metric
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.high_order import cubic
from rdmm.spatial.high_order.differences import jacobian, partial_transpose
from rdmm.types import Tensor


def coadjoint_rate(m: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """-ad*_v m = -[(div v) m + (Dv)^T m + (Dm) v], model (11); the first and last term in flux form, model (16): sum_j d_j (v_j m).

    The flux uses the negative transpose of the differences in (Dv)^T, so that <ad*_v m, v> = 0 to rounding. Inside the grid the two
    are the same; at the walls it is the flux of a momentum that is 0 beyond them.
    """
    if has_kernels(m):
        from rdmm.kernels import epdiff

        return epdiff.momentum_rate(m, v, grid.spacing)
    transposed = torch.stack([(dv * m).sum(1) for dv in jacobian(v, grid)], 1)
    return sum((partial_transpose(v[:, j : j + 1] * m, j, grid) for j in range(grid.ndim)), -transposed)


def map_rate(u: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """-(D phi) v for phi = id + u, model (10)."""
    if has_kernels(u):
        from rdmm.kernels import epdiff

        return epdiff.map_rate(u, v, grid.spacing)
    return -(v + sum(v[:, j : j + 1] * du for j, du in enumerate(jacobian(u, grid))))


class Weights(NamedTuple):
    """Pre-weights h (b, n, *s) at one time, and the weights w = G * h, model (6)."""

    h: Tensor
    w: Tensor


@dataclass(frozen=True, eq=False)
class EPDiff:
    """The rate of the momentum, RDMM (3.10), of a metric that is advected with phi.

    Args:
        h0: pre-weights h(0) (b, n, *s), or None: constant weights (LDDMM).
    """

    metric: Metric
    h0: Tensor | None
    identity: Tensor

    def weights(self, h: Tensor | None) -> Weights | None:
        return None if h is None else Weights(h, self.metric.weights(h))

    def advected_weights(self, u: Tensor) -> Weights | None:
        """h(t) = h(0) ∘ phi(t), and its weights: pre-weights advected with the map phi = id + u, model (13)."""
        return None if self.h0 is None else self.weights(cubic.sample(self.h0, self.identity + u, self.metric.grid))

    def velocity(self, m: Tensor, weights: Weights | None) -> Tensor:
        return self.metric.velocity(m, None if weights is None else weights.w)[0]

    def __call__(self, m: Tensor, weights: Weights | None) -> tuple[Tensor, Tensor]:
        """(d_t m, v): RDMM (3.10), model (12)."""
        grid = self.metric.grid
        ops.require_finite(m, "the momentum")
        v, powers = self.metric.velocity(m, None if weights is None else weights.w)
        rate = coadjoint_rate(m, v, grid)
        if weights is not None and powers is not None:
            rate = rate + self.metric.source(powers, weights.h)
        return rate, v

    def snapshot(self, t: float, y: State) -> Snapshot:
        m, u = y[:2]
        weights, grid = self.advected_weights(u), self.metric.grid
        w = None if weights is None else weights.w
        return Snapshot(t, grid, m, self.velocity(m, weights), u, w, self.metric.smoother.scales(grid))


@dataclass(frozen=True, eq=False)
class Eulerian:
    """d_t (m, u[, U]), with phi^{-1} = id + U."""

    equation: EPDiff

    def start(self, m: Tensor, inverse: bool) -> State:
        """The state at t = 0, where phi is the identity."""
        zero = torch.zeros_like(m)
        return (m, zero, *[zero] * inverse)

    def __call__(self, y: State) -> State:
        m, u = y[:2]
        grid = self.equation.metric.grid
        rate, v = self.equation(m, self.equation.advected_weights(u))
        rates = (rate, map_rate(u, v, grid))
        return rates if len(y) == 2 else (*rates, cubic.sample(v, self.equation.identity + y[2], grid))
