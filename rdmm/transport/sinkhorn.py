"""Sinkhorn's iteration and the divergence from its potentials, shared by transport on grids and between points.

    W(a, b) = min_pi <C, pi> + eps KL(pi | a x b) + rho KL(pi 1 | a) + rho KL(pi^T 1 | b)

(model (34)) has the dual potentials f, g of the pair, p of (a, a) and q of (b, b), here in units of eps (model (35)),

    f = -lambda L(log b + g),    g = -lambda L(log a + f),    p = -lambda L(log a + p),    lambda = rho / (rho + eps),

with L(h)(x) = log sum_y exp(h(y) - C(x, y) / eps) (Feydy et al., AISTATS 2019; Sejourne et al., arXiv 1910.12958).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from rdmm.spatial.ops import dots, total
from rdmm.types import Tensor

log = logging.getLogger(__name__)

MAX_EXTRAPOLATION = 20.0
"""Longest extrapolation, in steps of the iteration. Not measured."""

Step = Callable[[Tensor], Tensor]
"""Half a Sinkhorn iteration: f from g, or g from f."""


@dataclass(frozen=True, eq=False)
class Potentials:
    """Dual potentials (k, *t) of k problems, in the unit of the cost, at all points.

    Attributes:
        f, g: potentials of (a, b).
        p, q: potentials of (a, a) and of (b, b).
        error: marginal error when the iteration stopped: |pi 1 - a| / |a| in L1; unbalanced, a e^(-f / rho) takes the place of a.
        iterations: number of iterations on the finest level.
    """

    f: Tensor
    g: Tensor
    p: Tensor
    q: Tensor
    error: float
    iterations: int


@lru_cache
def warn_once(blur: float, tolerance: float, iterations: int) -> None:
    """Warn that the iteration stopped before its tolerance. The same settings warn only once."""
    log.warning(
        "transport at a blur of %g stopped after %d iterations, before its tolerance of %g: raise similarity.iterations or "
        "similarity.blur, or expect a less exact match (potentials(...).error tells the error reached)",
        blur,
        iterations,
        tolerance,
    )


def damping(eps: float, rho: float | None) -> float:
    """The factor lambda = rho / (rho + eps); 1 for balanced transport."""
    return 1.0 if rho is None else rho / (rho + eps)


def self_potential(a: Tensor, step: Step, damping: float, tolerance: float, iterations: int) -> Tensor:
    """Solve p = step(p) by averaging p and step(p), which at least halves the error. It starts from the solution for a constant density."""
    p = step(torch.zeros_like(a)) / (1 + damping)
    for _ in range(iterations):
        new = step(p)
        error = marginal_error(a, p, new, damping)
        p = 0.5 * (p + new)
        if error <= tolerance:
            break
    return p


def alternate(
    a: Tensor, f: Tensor, g: Tensor, to_f: Step, to_g: Step, damping: float, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor, float, int]:
    """Sinkhorn's iteration f = to_f(g), g = to_g(f), extrapolated from two iterates (Anderson, J. ACM 12, 1965); model (35).

    f and g are overwritten to save memory.

    Returns:
        f = to_f(g), g, the marginal error, and the number of iterations.
    """
    last: tuple[Tensor, Tensor] | None = None
    for k in range(iterations):
        new = to_f(g)
        error = marginal_error(a, f, new, damping)
        if error <= tolerance or k == iterations - 1:
            return new, g, error, k + 1
        residual = torch.sub(new, f, out=f)
        f = new.clone() if last is None else _extrapolate(a, new, residual, *last)
        last = new, residual
        g.copy_(to_g(f))
    raise AssertionError("at least one iteration")


def marginal_error(a: Tensor, f: Tensor, new: Tensor, damping: float) -> float:
    """|pi 1 - a e^(-f / rho)| / |a e^(-f / rho)|, the largest of the k problems, of the plan with the potential f; ``new`` is to_f(g).

    It follows from pi 1 = a exp(f - new / damping) and 1 / damping - 1 = eps / rho.
    """
    kept = a if damping == 1 else (f * (1 - 1 / damping)).exp_().mul_(a)
    wrong = (f - new).div_(damping).clamp_max_(50).expm1_().abs_().mul_(kept)
    return float((total(wrong) / total(kept)).max())


def _extrapolate(a: Tensor, new: Tensor, residual: Tensor, last: Tensor, last_residual: Tensor) -> Tensor:
    """The point on the line through two iterates with the smallest residual, as a mean under a; the last two tensors are overwritten."""
    change = torch.sub(residual, last_residual, out=last_residual)
    weighted = a * change
    along, length = (dots(weighted, x) for x in (residual, change))
    step = (along / length.clamp_min(1e-30)).clamp(-MAX_EXTRAPOLATION, MAX_EXTRAPOLATION).view(-1, *(1,) * (new.ndim - 1))
    return torch.sub(last, new, out=last).mul_(step).add_(new)


def divergence(a: Tensor, b: Tensor, found: Potentials, eps: float, rho: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """S = W(a, b) - W(a, a) / 2 - W(b, b) / 2 + eps / 2 (|a| - |b|)^2, (k,), and its gradients by a and by b.

    Balanced, S = <a, f - p> + <b, g - q> and dS/da = f - p. Unbalanced, with E(f, p) = e^(-p / rho) - e^(-f / rho),
    S = (rho + eps / 2) (<a, E(f, p)> + <b, E(g, q)>) and dS/da = (rho + eps) E(f, p): model (37).
    """
    slopes, factor = [], 1.0
    for f, p in ((found.f, found.p), (found.g, found.q)):
        if rho is None:
            slopes.append(f - p)
        else:
            slopes.append(-(rho + eps) * torch.exp(-p / rho) * torch.expm1((p - f) / rho))
            factor = (rho + eps / 2) / (rho + eps)
    value = sum(total(x * s, dtype=torch.float64) for x, s in zip((a, b), slopes, strict=True))
    return (factor * value).to(a.dtype), slopes[0], slopes[1]  # type: ignore[union-attr]
