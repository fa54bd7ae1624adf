"""Divergences of measures: (moved, target) -> (b,), 0 where they are equal. All behind one interface, all over all pairs of points.

With atoms x_i of weight a_i and direction u_i (normal or tangent), y_j, b_j and v_j. Lengths are in the unit of the points.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch

from rdmm.measure import Measure
from rdmm.pairs import Pairwise, half_squared_distance, reduce_pairs
from rdmm.transport.iteration import Potentials, divergence
from rdmm.transport.points import Cloud, Solver, tiling
from rdmm.types import ConfigError, InputError, Tensor

Cost = Literal["points", "sum", "product"]
Kernel = Literal["gaussian", "laplacian", "energy"]
Directions = Literal["none", "current", "varifold"]


class _Divergence(ABC):
    """Item by item of the batch."""

    @abstractmethod
    def _item(self, moved: Measure, target: Measure) -> Tensor:
        """The value () of measures of batch 1 without cells."""

    @final
    def __call__(self, moved: Measure, target: Measure) -> Tensor:
        """Raises InputError where the measures do not have one dimension, or lack the directions that are asked for."""
        for x in (moved, target):
            if not isinstance(x, Measure):
                raise InputError(f"this similarity compares measures (points, curves, surfaces), not {type(x).__name__}; see rdmm.measure")
        if moved.ndim != target.ndim:
            raise InputError(f"a similarity compares measures of one dimension, not {moved.ndim} and {target.ndim}")
        a, b = moved.atoms(), target.atoms()
        count = max(a.points.shape[0], b.points.shape[0])
        return torch.stack([self._item(_single(a, i), _single(b, i)) for i in range(count)])


def _single(m: Measure, i: int) -> Measure:
    parts = (None if x is None else x[min(i, len(x) - 1)][None] for x in (m.points, m.weights, m.normals))
    return Measure(*parts)  # type: ignore[arg-type]


def _directions(m: Measure) -> Tensor:
    if m.normals is None:
        raise InputError("this similarity compares directions: give the measure cells or normals, or choose one of positions alone")
    return m.normals[0].T


def _weights(m: Measure) -> Tensor:
    assert m.weights is not None
    return m.weights[0]


@final
@dataclass(frozen=True)
class SinkhornDivergence(_Divergence):
    """S = W(a, b) - W(a, a) / 2 - W(b, b) / 2 + eps / 2 (|a| - |b|)^2, as GridSinkhorn for images.

    The cost is (Feydy et al., MICCAI 2017, with a half before it)
        ``points``    C = |x - y|^2 / 2
        ``sum``       C = (|x - y|^2 + alpha d(u, v)^2) / 2, d the distance of u and v or, for k = 2, of u u^T and v v^T (10)
        ``product``   C = |x - y|^2 / 2 (1 + alpha (1 - <u, v>^k))                                                       (11)

    Args:
        blur, reach: sqrt(eps) and sqrt(rho), or None: balanced, where each measure counts as a mass of 1.
        p: 2.
        cost, alpha, k: k = 1 tells opposite directions apart, k = 2 does not.
        tolerance, iterations: marginal error (L1) at which the iteration stops, and iterations at most.
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
        if not 0 < self.blur < math.inf or (self.reach is not None and not 0 < self.reach < math.inf):
            raise ConfigError(f"similarity: blur and reach are lengths > 0, not {self.blur}, {self.reach}")
        if self.p != 2:
            raise ConfigError(f"similarity.p must be 2, the cost |x - y|^2 / 2; got {self.p}")
        if self.cost not in get_args(Cost):
            raise ConfigError(f"similarity.cost must be one of {', '.join(get_args(Cost))}, not {self.cost!r}")
        if not self.alpha >= 0 or self.k not in (1, 2):
            raise ConfigError(f"similarity: alpha >= 0 and k = 1 or 2 are wanted, not {self.alpha}, {self.k}")
        if not self.tolerance > 0 or self.iterations < 1:
            raise ConfigError(f"similarity: tolerance > 0 and iterations >= 1 are wanted, not {self.tolerance}, {self.iterations}")

    def _features(self, m: Measure) -> Tensor:
        """What the cost compares, (n, e)."""
        x = m.points[0].T
        if self.cost == "points":
            return x.contiguous()
        u = _directions(m)
        if self.cost == "product":
            return torch.cat([x, u], 1)
        if self.k == 2:
            u = (u.unsqueeze(2) * u.unsqueeze(1)).flatten(1)
        return torch.cat([x, math.sqrt(self.alpha) * u], 1)

    def _solver(self, d: int) -> Solver:
        cost = _product_cost(d, self.alpha, self.k) if self.cost == "product" else None
        return Solver(self.blur, self.reach, cost, self.tolerance, self.iterations)

    def _masses(self, m: Measure) -> Tensor:
        weights = _weights(m)
        return weights / weights.sum() if self.reach is None else weights

    def _item(self, moved: Measure, target: Measure) -> Tensor:
        arguments = (x for m in (moved, target) for x in (self._features(m), self._masses(m)))
        return _Transport.apply(*arguments, self._solver(moved.ndim))

    def displacement(self, points: Tensor, moved: Measure, target: Measure) -> Tensor:
        """Where the plan carries points (b, d, n) near the moved measure, less where its own plan does: (b, d, n).

        The mean of the target's atoms under the plan's weights, less that of the moved measure's own atoms: the debiased
        barycentric map, minus the gradient of the divergence by an atom over its weight. For ``cost="points"``.
        """
        if self.cost != "points":
            raise ConfigError("only cost=points carries points that are not atoms of a measure")
        out = []
        with torch.no_grad():
            for i, x in enumerate(points):
                a, b = (_single(m.atoms(), i) for m in (moved, target))
                solver, clouds = self._solver(moved.ndim), [Cloud(self._features(m), self._masses(m)) for m in (a, b)]
                ta, tb = (c[tiling(c.x)] for c in clouds)
                found, eps = solver(ta, tb), self.blur**2
                order = tiling(x.T)
                rows = x.T[order].contiguous()
                v = solver.slope(rows, ta, found.p[0] / eps, eps) - solver.slope(rows, tb, found.g[0] / eps, eps)
                out.append(v[order.argsort()].T)
        return torch.stack(out)

    def potentials(self, moved: Measure, target: Measure) -> Potentials:
        """Dual potentials (1, n) and (1, m) at the atoms of two measures of batch 1; the error that was reached is among them."""
        with torch.no_grad():
            a, b = (_single(m.atoms(), 0) for m in (moved, target))
            clouds = [Cloud(self._features(m), self._masses(m)) for m in (a, b)]
            return _in_order(self._solver(moved.ndim), *clouds)[0]


def _product_cost(d: int, alpha: float, k: int) -> Pairwise:
    def cost(p: Any, q: Any) -> Any:
        angle = (p[:, :, d:] * q[:, :, d:]).sum(-1)
        return half_squared_distance(p[:, :, :d], q[:, :, :d]) * (1 + alpha * (1 - angle**k))

    return cost


def _in_order(solver: Solver, a: Cloud, b: Cloud) -> tuple[Potentials, Tensor, Tensor]:
    """Potentials, and the gradients by x of f (weighted by the plan) less p, for both; found in the order of tiles."""
    orders = [tiling(c.x) for c in (a, b)]
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
    """S () of two clouds, with its gradients by positions and weights from the potentials."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, y: Tensor, b: Tensor, solver: Solver) -> Tensor:
        found, by_x, by_y = _in_order(solver, Cloud(x.detach(), a.detach()), Cloud(y.detach(), b.detach()))
        value, by_a, by_b = divergence(a.detach()[None], b.detach()[None], found, solver.blur, solver.reach)
        ctx.save_for_backward(by_x, by_a[0], by_y, by_b[0])
        return value[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * s if wanted else None for s, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)), None


@final
@dataclass(frozen=True)
class KernelDistance(_Divergence):
    """1/2 |a - b|^2 in the dual of a kernel's space: 1/2 sum k (a a - 2 a b + b b).

    Args:
        kernel: ``gaussian`` exp(-|x - y|^2 / (2 sigma^2)), ``laplacian`` exp(-|x - y| / sigma), ``energy`` -|x - y|.
        sigmas: one kernel each, summed; of no use to ``energy``.
        directions: ``none``; ``current``: times <u, v>; ``varifold``: times <u, v>^2, which does not ask for orientations.
    """

    kernel: Kernel = "gaussian"
    sigmas: Sequence[float] = (0.1,)
    directions: Directions = "none"

    def __post_init__(self) -> None:
        if self.kernel not in get_args(Kernel):
            raise ConfigError(f"similarity.kernel must be one of {', '.join(get_args(Kernel))}, not {self.kernel!r}")
        if self.directions not in get_args(Directions):
            raise ConfigError(f"similarity.directions must be one of {', '.join(get_args(Directions))}, not {self.directions!r}")
        if self.kernel != "energy" and (not self.sigmas or any(not s > 0 for s in self.sigmas)):
            raise ConfigError(f"similarity.sigmas must be > 0, not {list(self.sigmas)}")

    def _formula(self, d: int) -> Pairwise:
        def values(p: Any, q: Any) -> Any:
            squares = half_squared_distance(p[:, :, :d], q[:, :, :d]) * 2
            if self.kernel == "energy":
                out = -((squares + 1e-20) ** 0.5)
            elif self.kernel == "laplacian":
                out = sum((-((squares + 1e-20) ** 0.5) * (1 / s)).exp() for s in self.sigmas)
            else:
                out = sum((squares * (-0.5 / s**2)).exp() for s in self.sigmas)
            if self.directions == "none":
                return out
            return out * (p[:, :, d:] * q[:, :, d:]).sum(-1) ** (1 if self.directions == "current" else 2)

        return values

    def _item(self, moved: Measure, target: Measure) -> Tensor:
        x, y = (m.points[0].T if self.directions == "none" else torch.cat([m.points[0].T, _directions(m)], 1) for m in (moved, target))
        a, b = (_weights(m).unsqueeze(1) for m in (moved, target))
        formula = self._formula(moved.ndim)
        xx, xy, yy = (
            (p * reduce_pairs(formula, s, t, q, log_sum=False)).sum() for s, p, t, q in ((x, a, x, a), (x, a, y, b), (y, b, y, b))
        )
        return 0.5 * (xx + yy) - xy


@final
@dataclass(frozen=True)
class EnergyDistance(_Divergence):
    """KernelDistance of the kernel -|x - y|: no length to choose."""

    directions: Directions = "none"

    def _item(self, moved: Measure, target: Measure) -> Tensor:
        return KernelDistance("energy", directions=self.directions)._item(moved, target)


class _Gap(_Divergence):
    """1/2 <a - b, phi_b - phi_a> for a distance field phi_a of each measure (Feydy and Trouve, MICCAI 2018)."""

    blur: float

    @abstractmethod
    def _log_weights(self, x: Tensor, a: Tensor) -> Tensor:
        """h_j of phi(z) = -eps log sum_j exp(h_j - |z - x_j|^2 / (2 eps)); (n,)."""

    @final
    def _item(self, moved: Measure, target: Measure) -> Tensor:
        (x, a), (y, b) = ((m.points[0].T.contiguous(), _weights(m) / _weights(m).sum()) for m in (moved, target))
        ha, hb = self._log_weights(x, a), self._log_weights(y, b)
        on_a = soft_minimum(x, y, hb, self.blur) - soft_minimum(x, x, ha, self.blur)
        on_b = soft_minimum(y, x, ha, self.blur) - soft_minimum(y, y, hb, self.blur)
        return 0.5 * ((a * on_a).sum() + (b * on_b).sum())


def soft_minimum(x: Tensor, y: Tensor, h: Tensor, blur: float) -> Tensor:
    """-eps log sum_j exp(h_j - |x_i - y_j|^2 / (2 eps)), (n,); gradients pass to all."""
    eps = blur**2
    return -eps * reduce_pairs(lambda p, q: half_squared_distance(p, q) * (-1 / eps), x, y, h, log_sum=True)


@final
@dataclass(frozen=True)
class SoftMinDivergence(_Gap):
    """eps-SoftMin: phi_a(z) = -eps log sum_j a_j exp(-|z - x_j|^2 / (2 eps)), the log-likelihood of a mixture of Gaussians.

    Args:
        blur: sqrt(eps). Measures count as masses of 1.
    """

    blur: float = 0.05

    def __post_init__(self) -> None:
        _check_blur(self.blur)

    def _log_weights(self, x: Tensor, a: Tensor) -> Tensor:
        return a.clamp_min(1e-37).log()


@final
@dataclass(frozen=True)
class HausdorffDivergence(_Gap):
    """eps-Hausdorff: phi_a the Sinkhorn potential p of (a, a), at every point; 0 <= H <= S (Feydy et al., AISTATS 2019).

    Args:
        blur: sqrt(eps). Measures count as masses of 1.
        iterations: of p, which are differentiated; each halves the error.
    """

    blur: float = 0.05
    iterations: int = 12

    def __post_init__(self) -> None:
        _check_blur(self.blur)
        if self.iterations < 1:
            raise ConfigError(f"similarity.iterations must be at least 1, not {self.iterations}")

    def _log_weights(self, x: Tensor, a: Tensor) -> Tensor:
        log_a, eps = a.clamp_min(1e-37).log(), self.blur**2
        p = 0.5 * soft_minimum(x, x, log_a, self.blur)
        for _ in range(self.iterations):
            p = 0.5 * (p + soft_minimum(x, x, log_a + p / eps, self.blur))
        return log_a + p / eps


def _check_blur(blur: float) -> None:
    if not 0 < blur < math.inf:
        raise ConfigError(f"similarity.blur is a length > 0, not {blur}")
