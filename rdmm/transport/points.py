"""Transport between weighted points: reductions over all pairs, and the potentials.

A reduction runs over all pairs, never as a matrix: compiled tiles that leave out what does not count (the soft minimum of
squared distances, float32 on CPU), KeOps where it is installed, and blocks of torch elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from rdmm.ops import compiled
from rdmm.transport.iteration import Potentials, alternate, damping, self_potential
from rdmm.types import Tensor

log = logging.getLogger(__name__)

PAIRS = 2**22
"""Pairs of a block in torch."""

MANY = 2**24
"""Pairs from which KeOps is worth its compilation."""


@lru_cache
def has_keops() -> bool:
    """Whether pykeops can be imported."""
    return importlib.util.find_spec("pykeops") is not None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """KeOps prints on import and on compilation: standard output is for results."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


Pairwise = Callable[[Any, Any], Any]
"""A function of pairs: rows (n, 1, d) and columns (1, m, d), torch tensors or KeOps' LazyTensors, to (n, m)."""


def half_squared_distance(x: Any, y: Any) -> Any:
    """|x - y|^2 / 2."""
    return ((x - y) ** 2).sum(-1) * 0.5


def reduce_pairs(formula: Pairwise, x: Tensor, y: Tensor, b: Tensor, *, log_sum: bool) -> Tensor:
    """sum_j formula(x_i, y_j) b_j for b (m, e), (n, e); or, ``log_sum``, log sum_j exp(formula(x_i, y_j) + b_j) for b (m,), (n,).

    x (n, d), y (m, d). Gradients pass to x, y and b; memory is that of a block.
    """
    if len(x) * len(y) >= MANY and has_keops():
        return _with_keops(formula, x, y, b, log_sum)

    def block(rows: Tensor, y: Tensor, b: Tensor) -> Tensor:
        values = formula(rows.unsqueeze(1), y.unsqueeze(0))
        return torch.logsumexp(values + b, 1) if log_sum else values @ b

    step = max(1, PAIRS // len(y))
    if len(x) <= step:
        return block(x, y, b)
    return torch.cat([checkpoint(block, x[k : k + step], y, b, use_reentrant=False) for k in range(0, len(x), step)])


def _with_keops(formula: Pairwise, x: Tensor, y: Tensor, b: Tensor, log_sum: bool) -> Tensor:
    with quiet():
        from pykeops.torch import LazyTensor

        values = formula(LazyTensor(x.unsqueeze(1).contiguous()), LazyTensor(y.unsqueeze(0).contiguous()))
        column = LazyTensor(b.view(1, len(b), -1).contiguous())
        if log_sum:
            return (values + column).logsumexp(1).view(-1)
        return (values * column).sum(1)


@dataclass(frozen=True, eq=False)
class Cloud:
    """Weighted points, the features that a cost compares.

    Args:
        x: (n, d). a: (n,) weights >= 0.
    """

    x: Tensor
    a: Tensor

    @property
    def log_a(self) -> Tensor:
        return self.a.clamp_min(1e-37).log()

    def detach(self) -> Cloud:
        return Cloud(self.x.detach(), self.a.detach())

    def __getitem__(self, index: Tensor) -> Cloud:
        return Cloud(self.x[index], self.a[index])

    def clustered(self, size: float) -> Cloud:
        """The means of the points in each cube of a grid of this edge, with their weights summed."""
        cubes = torch.div(self.x - self.x.amin(0), size, rounding_mode="floor").long()
        _, index = torch.unique(cubes, dim=0, return_inverse=True)
        count = int(index.max()) + 1
        a = self.a.new_zeros(count).index_add_(0, index, self.a)
        x = self.x.new_zeros(count, self.x.shape[1]).index_add_(0, index, self.x * self.a.unsqueeze(1))
        return Cloud(x / a.clamp_min(1e-37).unsqueeze(1), a)


@dataclass(frozen=True)
class Solver:
    """Potentials of two clouds at the cost ``cost``.

    Args:
        cost: C(x, y); None: |x - y|^2 / 2.
        blur, reach: sqrt(eps) and sqrt(rho), or None: balanced.
        tolerance, iterations: as GridSinkhorn.
    """

    blur: float
    reach: float | None
    cost: Pairwise | None
    tolerance: float
    iterations: int

    def soft(self, x: Tensor, y: Cloud, g: Tensor, eps: float) -> Tensor:
        """L at x: log sum_j b_j exp(g_j - C(x, y_j) / eps); g in units of eps."""
        if self.cost is None and compiled(x) and x.dtype == torch.float32:
            from rdmm.transport.tiles import log_sum

            return log_sum(x, y.x, y.log_a + g, eps)[0]
        cost = self.cost or half_squared_distance
        return reduce_pairs(lambda p, q: cost(p, q) * (-1 / eps), x, y.x, y.log_a + g, log_sum=True)

    def slope(self, x: Tensor, y: Cloud, g: Tensor, eps: float) -> Tensor:
        """d/dx of -eps L(x), (n, d): the mean of d/dx C(x, y_j) under the plan's weights."""
        if self.cost is None and compiled(x) and x.dtype == torch.float32:
            from rdmm.transport.tiles import log_sum

            mean = log_sum(x, y.x, y.log_a + g, eps, mean=True)[1]
            assert mean is not None
            return x - mean
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(-eps * self.soft(x, y, g, eps).sum(), x)[0]

    def __call__(self, a: Cloud, b: Cloud) -> Potentials:
        """Potentials (1, n) and (1, m), coarse to fine: every level has half the blur of the one before, and clusters of that size.

        From level to level go f - p and g - q, which the soft minima themselves give at the finer level's points.
        """
        levels = self._levels(a, b)
        start: tuple[Tensor, Tensor] | None = None
        for number, (ca, cb, eps) in enumerate(levels):
            share = damping(eps, self.reach)

            def step(to: Cloud, of: Cloud, eps: float = eps, share: float = share):  # type: ignore[no-untyped-def]
                return lambda u: self.soft(to.x, of, u[0], eps)[None].mul_(-share)

            p, q = (self_potential(c.a[None], step(c, c), share, self.tolerance, self.iterations) for c in (ca, cb))
            f, g = p, q
            if start is not None:
                f, g = (own + x / eps for own, x in zip((p, q), start, strict=True))
            f, g, error, count = alternate(ca.a[None], f, g, step(ca, cb), step(cb, ca), share, self.tolerance, self.iterations)
            log.debug("transport of %d to %d points: %d iterations, marginal error %.3g", len(ca.x), len(cb.x), count, error)
            if number < len(levels) - 1:
                fa, fb, _ = levels[number + 1]
                start = (step(fa, cb)(g) - step(fa, ca)(p)) * eps, (step(fb, ca)(f) - step(fb, cb)(q)) * eps
        return Potentials(f * eps, g * eps, p * eps, q * eps, error, count)

    def _levels(self, a: Cloud, b: Cloud) -> list[tuple[Cloud, Cloud, float]]:
        """(a, b, eps) from coarse to fine."""
        both = torch.cat([a.x, b.x])
        diameter = float((both.amax(0) - both.amin(0)).max())
        levels, blur = [(a, b, self.blur**2)], self.blur
        while blur < diameter / 4:
            blur *= 2
            levels.append((_ordered(a.clustered(blur)), _ordered(b.clustered(blur)), blur**2))
        return levels[::-1]


def _ordered(a: Cloud) -> Cloud:
    return a[tiling(a.x)]


def tiling(x: Tensor) -> Tensor:
    """Indices that make neighbours of what is near, for the compiled tiles."""
    if not compiled(x):
        return torch.arange(len(x), device=x.device)
    from rdmm.transport.tiles import order

    return torch.as_tensor(np.ascontiguousarray(order(x.detach().numpy())))
