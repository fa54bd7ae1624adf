"""The Sinkhorn divergence of measures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch

from rdmm.kernels.pairwise import Pairwise, half_squared_distance
from rdmm.similarity.shapes.divergence import MeasureDivergence, directions_of, single_item, weights_of
from rdmm.spatial.measure import Measure
from rdmm.transport.on_points import Cloud, Solver, tile_order
from rdmm.transport.sinkhorn import Potentials, divergence
from rdmm.types import ConfigError, Tensor, require_finite_fields, require_length

Cost = Literal["points", "sum", "product"]


@final
@dataclass(frozen=True)
class SinkhornDivergence(MeasureDivergence):
    """S = W(a, b) - W(a, a) / 2 - W(b, b) / 2 + eps / 2 (|a| - |b|)^2, model (37); GridSinkhorn is its form for images.

    The cost C is half the cost of the paper:
        ``points``    C = |x - y|^2 / 2
        ``sum``       C = (|x - y|^2 + alpha d(u, v)^2) / 2, Feydy 2017 (10), model (38); d is the distance of u and v or, for
                      k = 2, of u u^T and v v^T
        ``product``   C = |x - y|^2 / 2 (1 + alpha (1 - <u, v>^k)), Feydy 2017 (11), model (39)

    Args:
        blur: sqrt(eps), in the unit of the points.
        reach: sqrt(rho), in the same unit; None: balanced transport, which scales each measure to mass 1.
        p: exponent of the cost; only 2 is possible.
        cost: ``points``, ``sum`` or ``product``.
        alpha: weight of the directions in the cost.
        k: 1: opposite directions differ; 2: they are the same.
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
        if self.p != 2:
            raise ConfigError(f"similarity.p must be 2, the cost |x - y|^2 / 2; got {self.p}")
        if self.cost not in get_args(Cost):
            raise ConfigError(f"similarity.cost must be one of {', '.join(get_args(Cost))}, not {self.cost!r}")
        if not self.alpha >= 0 or self.k not in (1, 2):
            raise ConfigError(f"similarity: alpha must be >= 0, and k = 1 or 2, not {self.alpha}, {self.k}")
        if not self.tolerance > 0 or self.iterations < 1:
            raise ConfigError(f"similarity: tolerance must be > 0 and iterations >= 1, not {self.tolerance}, {self.iterations}")

    def _features(self, m: Measure) -> Tensor:
        """The features (n, e) that the cost compares."""
        x = m.points[0].T
        if self.cost == "points":
            return x.contiguous()
        u = directions_of(m)
        if self.cost == "product":
            return torch.cat([x, u], 1)
        if self.k == 2:
            u = (u.unsqueeze(2) * u.unsqueeze(1)).flatten(1)
        return torch.cat([x, math.sqrt(self.alpha) * u], 1)

    def _solver(self, d: int) -> Solver:
        cost = _product_cost(d, self.alpha, self.k) if self.cost == "product" else None
        return Solver(self.blur, self.reach, cost, self.tolerance, self.iterations)

    def _masses(self, m: Measure) -> Tensor:
        weights = weights_of(m)
        return weights / weights.sum() if self.reach is None else weights

    def _item(self, moved: Measure, target: Measure) -> Tensor:
        arguments = (x for m in (moved, target) for x in (self._features(m), self._masses(m)))
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
            ConfigError: the cost is not ``points``.
        """
        if self.cost != "points":
            raise ConfigError(f"the displacement is defined for similarity.cost=points only, not {self.cost}")
        out = []
        with torch.no_grad():
            for i, x in enumerate(points):
                a, b = (single_item(m.atoms(), i) for m in (moved, target))
                solver, clouds = self._solver(moved.ndim), [Cloud(self._features(m), self._masses(m)) for m in (a, b)]
                ta, tb = (c[tile_order(c.x)] for c in clouds)
                found, eps = solver(ta, tb), self.blur**2
                order = tile_order(x.T)
                rows = x.T[order].contiguous()
                v = solver.slope(rows, ta, found.p[0] / eps, eps) - solver.slope(rows, tb, found.g[0] / eps, eps)
                out.append(v[order.argsort()].T)
        return torch.stack(out)

    def potentials(self, moved: Measure, target: Measure) -> Potentials:
        """Dual potentials (1, n) and (1, m) at the atoms of two measures of batch 1, and the marginal error of the solution."""
        with torch.no_grad():
            a, b = (single_item(m.atoms(), 0) for m in (moved, target))
            clouds = [Cloud(self._features(m), self._masses(m)) for m in (a, b)]
            return _solve_in_tiles(self._solver(moved.ndim), *clouds)[0]


def _product_cost(d: int, alpha: float, k: int) -> Pairwise:
    def cost(p: Any, q: Any) -> Any:
        angle = (p[:, :, d:] * q[:, :, d:]).sum(-1)
        return half_squared_distance(p[:, :, :d], q[:, :, :d]) * (1 + alpha * (1 - angle**k))

    return cost


def _solve_in_tiles(solver: Solver, a: Cloud, b: Cloud) -> tuple[Potentials, Tensor, Tensor]:
    """Potentials, and for both clouds the gradients of f - p with respect to positions, weighted by the marginals.

    The points are sorted into tiles for the solution, and the results sorted back.
    """
    orders = [tile_order(c.x) for c in (a, b)]
    ta, tb = (c[o] for c, o in zip((a, b), orders, strict=True))
    found = solver(ta, tb)
    eps, moves = solver.blur**2, []
    for c, other, f, g, p in ((ta, tb, found.f, found.g, found.p), (tb, ta, found.g, found.f, found.q)):
        kept = [c.a if solver.reach is None else c.a * torch.exp(-u[0] / solver.reach**2) for u in (f, p)]
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
        value, by_a, by_b = divergence(a.detach()[None], b.detach()[None], found, solver.blur, solver.reach)
        ctx.save_for_backward(by_x, by_a[0], by_y, by_b[0])
        return value[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * s if wanted else None for s, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)), None
