"""The Sinkhorn divergence of measures."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch

from rdmm.kernels.pairwise import Pairwise, half_squared_distance
from rdmm.similarity.shapes.divergence import MAX_POWER, MeasureDivergence, directions_of, features_of, single_item, weights_of
from rdmm.spatial.measure import Measure
from rdmm.transport.on_points import Cloud, Solver, tile_order
from rdmm.transport.sinkhorn import Potentials, divergence
from rdmm.types import ConfigError, Tensor, require_finite_fields, require_length, require_whole

Cost = Literal["points", "sum", "product", "features"]

TINY_SQUARE = 1e-20
"""Added to squared distances under a root, whose slope at 0 is then 0."""


@final
@dataclass(frozen=True)
class SinkhornDivergence(MeasureDivergence):
    """S = W(a, b) - W(a, a) / 2 - W(b, b) / 2 + eps / 2 (|a| - |b|)^2, model (37); GridSinkhorn is its form for images.

    The cost is C = D^p / p, D a distance of atoms with positions x, y. For p = 2 it is half the cost of the papers.
        ``points``    D^2 = |x - y|^2
        ``sum``       D^2 = |x - y|^2 + alpha d(u, v)^2, Feydy 2017 (10), model (38); u, v are directions, and d the distance of their
                      k-th tensor powers: d^2 = 2 (1 - <u, v>^k)
        ``product``   D^2 = |x - y|^2 (1 + alpha (1 - <u, v>^k)), Feydy 2017 (11), model (39)
        ``features``  D^2 = |x - y|^2 + alpha |f - g|^2; f, g are the atoms' features

    Args:
        blur: a length, in the unit of the points: eps = blur^p.
        reach: a length: rho = reach^p; None: balanced transport, which scales each measure to mass 1.
        p: 2, or 1: the cost grows like the distance itself, so that single far points count less.
        cost: ``points``, ``sum``, ``product`` or ``features``.
        alpha: weight of the directions or features in the cost.
        k: power of <u, v>. Odd: opposite directions differ; even: they are the same.
        tolerance: marginal error (L1) at which the iteration stops.
        iterations: largest number of iterations.
    """

    blur: float = 0.02
    reach: float | None = None
    p: int = 2
    cost: Cost = "points"
    alpha: float = 0.1
    k: int = 1
    tolerance: float = 0.01
    iterations: int = 100

    def __post_init__(self) -> None:
        require_finite_fields(self)
        require_length("similarity.blur", self.blur)
        if self.reach is not None:
            require_length("similarity.reach", self.reach)
        if self.p not in (1, 2):
            raise ConfigError(f"similarity.p must be 1 or 2, the power of the distance in the cost; got {self.p}")
        if self.cost not in get_args(Cost):
            raise ConfigError(f"similarity.cost must be one of {', '.join(get_args(Cost))}, not {self.cost!r}")
        require_whole("similarity.k", self.k, 1, MAX_POWER)
        if not self.alpha >= 0:
            raise ConfigError(f"similarity.alpha must be >= 0, not {self.alpha}")
        if not self.tolerance > 0 or self.iterations < 1:
            raise ConfigError(f"similarity: tolerance must be > 0 and iterations >= 1, not {self.tolerance}, {self.iterations}")

    def _compared(self, m: Measure) -> Tensor:
        """What the cost compares, (n, e): for all costs but ``product``, D is the distance of two rows."""
        x = m.points[0].T
        if self.cost == "points":
            return x.contiguous()
        if self.cost == "features":
            return torch.cat([x, math.sqrt(self.alpha) * features_of(m)], 1)
        u = directions_of(m)
        return torch.cat([x, u if self.cost == "product" else math.sqrt(self.alpha) * tensor_power(u, self.k)], 1)

    def _solver(self, d: int) -> Solver:
        cost = _cost(d if self.cost == "product" else None, self.alpha, self.k, self.p)
        return Solver(self.blur, self.reach, cost, self.tolerance, self.iterations, self.p)

    def _masses(self, m: Measure) -> Tensor:
        weights = weights_of(m)
        return weights / weights.sum() if self.reach is None else weights

    def _item(self, moved: Measure, target: Measure) -> Tensor:
        arguments = (x for m in (moved, target) for x in (self._compared(m), self._masses(m)))
        return _Transport.apply(*arguments, self._solver(moved.ndim))

    def displacement(self, points: Tensor, moved: Measure, target: Measure) -> Tensor:
        """Debiased barycentric displacement: plan(moved, target) minus plan(moved, moved), where plan(a, b) is the
        plan-weighted mean of the atoms of b.

        At an atom of the moved measure it is minus the gradient of the divergence by that atom, divided by its weight.

        Args:
            points: (b, d, n), near the moved measure.

        Returns:
            (b, d, n).

        Raises:
            ConfigError: the cost is not ``points``, or p is not 2.
        """
        if self.cost != "points" or self.p != 2:
            raise ConfigError(f"the displacement is defined for similarity.cost=points and p=2 only, not for {self.cost} and {self.p}")
        out = []
        with torch.no_grad():
            for i, x in enumerate(points):
                a, b = (single_item(m.atoms(), i) for m in (moved, target))
                solver, clouds = self._solver(moved.ndim), [Cloud(self._compared(m), self._masses(m)) for m in (a, b)]
                ta, tb = (c[tile_order(c.x)] for c in clouds)
                found, eps = solver(ta, tb), solver.eps
                order = tile_order(x.T)
                rows = x.T[order].contiguous()
                v = solver.slope(rows, ta, found.p[0] / eps, eps) - solver.slope(rows, tb, found.g[0] / eps, eps)
                out.append(v[order.argsort()].T)
        return torch.stack(out)

    def goals(self, moved: Measure, target: Measure) -> Tensor:
        """Where the plan sends each atom of the moved measure, (1, d, n): the mean of the target's atoms under the plan. Batch 1."""
        found, eps = self.potentials(moved, target), self._solver(moved.ndim).eps
        with torch.no_grad():
            a, b = (single_item(m.atoms(), 0) for m in (moved, target))
            cloud = Cloud(self._compared(b), self._masses(b))
            return self._solver(moved.ndim).goals(self._compared(a), cloud, found.g[0] / eps, eps, b.points[0].T).T[None]

    def potentials(self, moved: Measure, target: Measure) -> Potentials:
        """Dual potentials (1, n) and (1, m) at the atoms of two measures of batch 1, and the marginal error of the solution."""
        with torch.no_grad():
            a, b = (single_item(m.atoms(), 0) for m in (moved, target))
            clouds = [Cloud(self._compared(m), self._masses(m)) for m in (a, b)]
            return _solve_in_tiles(self._solver(moved.ndim), *clouds)[0]


def tensor_power(u: Tensor, k: int) -> Tensor:
    """Rows (n, e) whose inner products are <u, v>^k, of rows u (n, d): each monomial of degree k, times the root of its multiplicity."""
    columns = []
    for factors in itertools.combinations_with_replacement(range(u.shape[1]), k):
        count = math.factorial(k) // math.prod(math.factorial(factors.count(i)) for i in range(u.shape[1]))
        columns.append(math.sqrt(count) * u[:, factors].prod(1))
    return torch.stack(columns, 1)


def _cost(d: int | None, alpha: float, k: int, p: int) -> Pairwise | None:
    """C = D^p / p, with directions behind the d coordinates of ``product``; d None: of the distance of rows. None: |x - y|^2 / 2."""
    if d is None and p == 2:
        return None

    def cost(x: Any, y: Any) -> Any:
        if d is None:
            half = half_squared_distance(x, y)
        else:
            angle = (x[:, :, d:] * y[:, :, d:]).sum(-1)
            half = half_squared_distance(x[:, :, :d], y[:, :, :d]) * (1 + alpha * (1 - angle**k))
        return half if p == 2 else (2 * half + TINY_SQUARE) ** 0.5

    return cost


def _solve_in_tiles(solver: Solver, a: Cloud, b: Cloud) -> tuple[Potentials, Tensor, Tensor]:
    """Potentials, and for both clouds the gradients of f - p with respect to positions, weighted by the marginals.

    The points are sorted into tiles for the solution, and the results sorted back.
    """
    orders = [tile_order(c.x) for c in (a, b)]
    ta, tb = (c[o] for c, o in zip((a, b), orders, strict=True))
    found = solver(ta, tb)
    eps, moves = solver.eps, []
    for c, other, f, g, p in ((ta, tb, found.f, found.g, found.p), (tb, ta, found.g, found.f, found.q)):
        kept = [c.a if solver.rho is None else c.a * torch.exp(-u[0] / solver.rho) for u in (f, p)]
        slopes = (solver.slope(c.x, y, u[0] / eps, eps) for y, u in ((other, g), (c, p)))
        cross, own = (w.unsqueeze(1) * s for w, s in zip(kept, slopes, strict=True))
        moves.append(cross - own)
    back = [o.argsort() for o in orders]
    f, g, p, q = (u[:, back[i]] for u, i in ((found.f, 0), (found.g, 1), (found.p, 0), (found.q, 1)))
    return Potentials(f, g, p, q, found.error, found.iterations), moves[0][back[0]], moves[1][back[1]]


class _Transport(torch.autograd.Function):
    """The divergence (a scalar) of two clouds. Its gradients with respect to positions and weights follow from the potentials."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, y: Tensor, b: Tensor, solver: Solver) -> Tensor:
        found, by_x, by_y = _solve_in_tiles(solver, Cloud(x.detach(), a.detach()), Cloud(y.detach(), b.detach()))
        value, by_a, by_b = divergence(a.detach()[None], b.detach()[None], found, solver.eps, solver.rho)
        ctx.save_for_backward(by_x, by_a[0], by_y, by_b[0])
        return value[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * s if wanted else None for s, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)), None
