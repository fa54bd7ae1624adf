"""Unbalanced entropic transport between densities on one grid: the dual potentials, coarse to fine.

    W(a, b) = min_pi <C, pi> + eps KL(pi | a x b) + rho KL(pi 1 | a) + rho KL(pi^T 1 | b),    C = |x - y|^2 / 2

with potentials f, g of the pair, p of (a, a) and q of (b, b), all in units of eps:

    f = -lambda L(log b + g),    g = -lambda L(log a + f),    p = -lambda L(log a + p),    lambda = rho / (rho + eps).

(Feydy et al., AISTATS 2019; Sejourne et al. 2019). A level of the pyramid has the blur of its own voxel. Its own p and q
are found at once (their iteration contracts by 2); f - p and g - q, smooth where f and g are not, come from the coarser level.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rdmm.transport.convolution import EMPTY, log_convolve
from rdmm.types import Tensor

log = logging.getLogger(__name__)

LONGEST = 20.0
"""Steps that an extrapolation may go at once."""

SMALLEST = 6
"""Voxels along an axis that is not made coarser."""


@dataclass(frozen=True, eq=False)
class Potentials:
    """Dual potentials (k, *s), in squared domain units, on the whole grid.

    Attributes:
        f, g: of the pair. p, q: of (a, a) and (b, b).
        error: marginal error, the larger of |pi 1 - a| / |a| and |pi^T 1 - b| / |b| (L1; unbalanced: against a e^(-f/rho)).
        iterations: on the finest level.
    """

    f: Tensor
    g: Tensor
    p: Tensor
    q: Tensor
    error: float
    iterations: int


@dataclass(frozen=True, eq=False)
class Level:
    """Log-densities and spacing of one level, and the axes that are halved on the next coarser one."""

    log_a: Tensor
    log_b: Tensor
    spacing: tuple[float, ...]


def potentials(
    a: Tensor, b: Tensor, spacing: Sequence[float], blur: float, reach: float | None, tolerance: float, iterations: int
) -> Potentials:
    """Of densities a, b (k, *s) >= 0 in masses per voxel, k independent problems; see the module."""
    levels = _pyramid(_log(a), _log(b), tuple(spacing))
    start: tuple[Tensor, Tensor] | None = None
    for number, level in enumerate(reversed(levels)):
        eps = (blur if number == len(levels) - 1 else max(blur, *level.spacing)) ** 2
        alpha = [h * h / eps for h in level.spacing]
        damping = 1.0 if reach is None else reach**2 / (reach**2 + eps)
        p, q = (_self_potential(x, alpha, damping, tolerance, iterations) for x in (level.log_a, level.log_b))
        f, g = p, q
        if start is not None:
            coarse = levels[-number].spacing
            f, g = (own + prolong(x, coarse, level.spacing, own.shape) / eps for own, x in zip((p, q), start, strict=True))
        f, g, error, count = _alternate(level, f, g, alpha, damping, tolerance, iterations)
        log.debug("transport %s: %d iterations, marginal error %.3g", "x".join(map(str, p.shape[1:])), count, error)
        start = (f - p) * eps, (g - q) * eps
    return Potentials(f * eps, g * eps, p * eps, q * eps, error, count)


def _log(a: Tensor) -> Tensor:
    return torch.where(a > 0, a.clamp_min(1e-37).log(), EMPTY)


def _pyramid(log_a: Tensor, log_b: Tensor, spacing: tuple[float, ...]) -> list[Level]:
    levels = [Level(log_a, log_b, spacing)]
    while True:
        last = levels[-1]
        shape, h = last.log_a.shape[1:], last.spacing
        halved = [i for i in range(len(h)) if h[i] < 1.5 * min(h) and shape[i] > SMALLEST]
        if not halved:
            return levels
        a, b = (_coarser(x, halved) for x in (last.log_a, last.log_b))
        levels.append(Level(a, b, tuple(2 * x if i in halved else x for i, x in enumerate(h))))


def _coarser(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Log-densities with pairs of voxels along ``axes`` made one."""
    for i in axes:
        axis = i + 1
        if x.shape[axis] % 2:
            x = torch.cat([x, torch.full_like(x.narrow(axis, 0, 1), EMPTY)], axis)
        x = torch.logaddexp(*x.unflatten(axis, (-1, 2)).unbind(axis + 1))
    return x


def prolong(f: Tensor, coarse: Sequence[float], fine: Sequence[float], shape: Sequence[int]) -> Tensor:
    """A potential on the next finer level: linear between voxels, whose centres are shifted by half a fine voxel, and beyond them."""
    for i, (h, k) in enumerate(zip(coarse, fine, strict=True)):
        if h == k:
            continue
        axis, n = i + 1, shape[i + 1]
        first, last = (f.narrow(axis, j, 1) * 2 - f.narrow(axis, m, 1) for j, m in ((0, 1), (f.shape[axis] - 1, f.shape[axis] - 2)))
        padded = torch.cat([first, f, last], axis)
        here, before, after = (padded.narrow(axis, j, f.shape[axis]) for j in (1, 0, 2))
        f = torch.stack([0.75 * here + 0.25 * before, 0.75 * here + 0.25 * after], axis + 1).flatten(axis, axis + 1).narrow(axis, 0, n)
    return f


def _self_potential(log_a: Tensor, alpha: Sequence[float], damping: float, tolerance: float, iterations: int) -> Tensor:
    """p = -damping L(log a + p): from the one of a constant density, by averaging, which halves the error at least."""
    p = log_convolve(log_a, alpha) * (-damping / (1 + damping))
    for _ in range(iterations):
        new = -damping * log_convolve(log_a + p, alpha)
        error = _marginal_error(log_a.exp(), p, new, damping)
        p = 0.5 * (p + new)
        if error <= tolerance:
            return p
    return p


def _marginal_error(a: Tensor, f: Tensor, new: Tensor, damping: float) -> float:
    """|pi 1 - a e^(-f / rho)| / |a e^(-f / rho)| of the plan whose potential on this side is f and should be ``new``: for
    pi 1 = a exp(f - new / damping), and 1 / damping - 1 = eps / rho."""
    kept = a if damping == 1 else a * torch.exp((1 - 1 / damping) * f)
    wrong = kept * torch.expm1(((f - new) / damping).clamp_max(50)).abs_()
    return float((wrong.flatten(1).sum(1) / kept.flatten(1).sum(1)).max())


def _alternate(
    level: Level, f: Tensor, g: Tensor, alpha: Sequence[float], damping: float, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor, float, int]:
    """Sinkhorn's iteration, extrapolated from two iterates (Anderson, J. ACM 12, 1965); it ends with f exact for g."""
    a = level.log_a.exp()
    last: tuple[Tensor, Tensor] | None = None
    for k in range(iterations):
        new = -damping * log_convolve(level.log_b + g, alpha)
        residual = new - f
        error = _marginal_error(a, f, new, damping)
        if error <= tolerance or k == iterations - 1:
            return new, g, error, k + 1
        f = new if last is None else _extrapolated(a, new, residual, *last)
        last = new, residual
        g = -damping * log_convolve(level.log_a + f, alpha)
    raise AssertionError("at least one iteration")


def _extrapolated(a: Tensor, new: Tensor, residual: Tensor, last: Tensor, last_residual: Tensor) -> Tensor:
    """The point on the line through two iterates whose residual is least in the mean over a."""
    change = residual - last_residual
    along, length = ((a * x * change).flatten(1).sum(1) for x in (residual, change))
    step = (along / length.clamp_min(1e-30)).clamp(-LONGEST, LONGEST)
    return new - step.view(-1, *(1,) * (new.ndim - 1)) * (new - last)
