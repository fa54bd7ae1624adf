"""Transport between weighted points: potentials, coarse to fine.

The soft minimum of squared distances in float32 on CPU is compiled, and skips pairs without influence; any other cost is summed over
all pairs (rdmm.kernels.pairwise).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rdmm.kernels.available import has_kernels
from rdmm.kernels.pairwise import Pairwise, half_squared_distance, reduce_pairs
from rdmm.transport.sinkhorn import Potentials, alternate, damping, self_potential, warn_once
from rdmm.types import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Cloud:
    """Weighted points.

    Args:
        x: (n, d), the features that a cost compares: positions, perhaps with directions.
        a: (n,) weights >= 0.
    """

    x: Tensor
    a: Tensor

    @property
    def log_a(self) -> Tensor:
        return self.a.clamp_min(1e-37).log()

    def __getitem__(self, index: Tensor) -> Cloud:
        return Cloud(self.x[index], self.a[index])

    def cluster(self, size: float) -> Cloud:
        """A coarser cloud: each occupied cube of edge ``size`` becomes the weighted mean of its points, with the sum of their weights."""
        cubes = torch.div(self.x - self.x.amin(0), size, rounding_mode="floor").long()
        _, index = torch.unique(cubes, dim=0, return_inverse=True)
        count = int(index.max()) + 1
        a = self.a.new_zeros(count).index_add_(0, index, self.a)
        x = self.x.new_zeros(count, self.x.shape[1]).index_add_(0, index, self.x * self.a.unsqueeze(1))
        return Cloud(x / a.clamp_min(1e-37).unsqueeze(1), a)


@dataclass(frozen=True)
class Solver:
    """Solves for the potentials of two clouds.

    Args:
        blur: a length: eps = blur^p.
        reach: a length: rho = reach^p; None: balanced.
        cost: C(x, y), which grows like a length^p; None: |x - y|^2 / 2.
        tolerance: marginal error (L1) at which a level stops.
        iterations: largest number of iterations on each level.
        p: exponent of the lengths in the cost.
    """

    blur: float
    reach: float | None
    cost: Pairwise | None
    tolerance: float
    iterations: int
    p: int = 2

    @property
    def eps(self) -> float:
        return self.blur**self.p

    @property
    def rho(self) -> float | None:
        return None if self.reach is None else self.reach**self.p

    def soft(self, x: Tensor, y: Cloud, g: Tensor, eps: float) -> Tensor:
        """The soft minimum L at x: log sum_j b_j exp(g_j - C(x, y_j) / eps); g in units of eps."""
        if self.cost is None and has_kernels(x) and x.dtype == torch.float32:
            from rdmm.kernels.softmin_points import log_sum

            return log_sum(x, y.x, y.log_a + g, eps)[0]
        cost = self.cost or half_squared_distance
        return reduce_pairs(lambda p, q: cost(p, q) * (-1 / eps), x, y.x, y.log_a + g, log_sum=True)

    def slope(self, x: Tensor, y: Cloud, g: Tensor, eps: float) -> Tensor:
        """d/dx of -eps L(x), (n, d): the mean of d/dx C(x, y_j) under the plan's weights."""
        if self.cost is None and has_kernels(x) and x.dtype == torch.float32:
            from rdmm.kernels.softmin_points import log_sum

            mean = log_sum(x, y.x, y.log_a + g, eps, mean=True)[1]
            assert mean is not None
            return x - mean
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(-eps * self.soft(x, y, g, eps).sum(), x)[0]

    def goals(self, x: Tensor, y: Cloud, g: Tensor, eps: float, places: Tensor) -> Tensor:
        """The means (n, d) of ``places`` (m, d) of the points y under the plan's weights at x (n, e)."""
        cost, total = self.cost or half_squared_distance, self.soft(x, y, g, eps)
        rows, columns = torch.cat([x, total.unsqueeze(1)], 1), torch.cat([y.x, (y.log_a + g).unsqueeze(1)], 1)

        def weight(p: Any, q: Any) -> Any:
            return (cost(p[:, :, :-1], q[:, :, :-1]) * (-1 / eps) + q[:, :, -1:].sum(-1) - p[:, :, -1:].sum(-1)).exp()

        return reduce_pairs(weight, rows, columns, places, log_sum=False)

    def __call__(self, a: Cloud, b: Cloud) -> Potentials:
        """Potentials (1, n) and (1, m), coarse to fine: each level halves the blur and the size of the clusters.

        A level starts from f - p and g - q of the coarser one, evaluated at its own points by the soft minima.
        """
        levels = self._levels(a, b)
        start: tuple[Tensor, Tensor] | None = None
        for number, (ca, cb, eps) in enumerate(levels):
            factor = damping(eps, self.rho)

            def step(target: Cloud, source: Cloud, eps: float = eps, factor: float = factor):  # type: ignore[no-untyped-def]
                return lambda u: self.soft(target.x, source, u[0], eps)[None].mul_(-factor)

            p, q = (self_potential(c.a[None], step(c, c), factor, self.tolerance, self.iterations) for c in (ca, cb))
            f, g = (p.clone(), q.clone()) if start is None else (own + x / eps for own, x in zip((p, q), start, strict=True))
            f, g, error, count = alternate(ca.a[None], f, g, step(ca, cb), step(cb, ca), factor, self.tolerance, self.iterations)
            log.debug("transport of %d to %d points: %d iterations, marginal error %.3g", len(ca.x), len(cb.x), count, error)
            if number < len(levels) - 1:
                fa, fb, _ = levels[number + 1]
                start = (step(fa, cb)(g) - step(fa, ca)(p)) * eps, (step(fb, ca)(f) - step(fb, cb)(q)) * eps
        if error > self.tolerance:
            warn_once(self.blur, self.tolerance, self.iterations)
        return Potentials(f * eps, g * eps, p * eps, q * eps, error, count)

    def _levels(self, a: Cloud, b: Cloud) -> list[tuple[Cloud, Cloud, float]]:
        """(a, b, eps) from coarse to fine."""
        both = torch.cat([a.x, b.x])
        diameter = float((both.amax(0) - both.amin(0)).max())
        levels, blur = [(a, b, self.eps)], self.blur
        while blur < diameter / 4:
            blur *= 2
            levels.append((_sort_into_tiles(a.cluster(blur)), _sort_into_tiles(b.cluster(blur)), blur**self.p))
        return levels[::-1]


def _sort_into_tiles(a: Cloud) -> Cloud:
    """The cloud in the order of tiles."""
    return a[tile_order(a.x)]


def tile_order(x: Tensor) -> Tensor:
    """Indices that sort points (n, d) into the compiled kernel's tiles of neighbors; without the kernel, the given order."""
    if not has_kernels(x):
        return torch.arange(len(x), device=x.device)
    from rdmm.kernels.softmin_points import sort_into_tiles

    return torch.as_tensor(np.ascontiguousarray(sort_into_tiles(x.detach().numpy())))
