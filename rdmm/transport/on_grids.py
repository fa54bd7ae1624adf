"""Transport between densities on one grid with the cost |x - y|^2 / 2: potentials, coarse to fine.

The blur of a level is the size of its voxels. Each level solves for its own p and q. f and g start from f - p and g - q of the
coarser level, which are smoother than f and g.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rdmm.transport.sinkhorn import Potentials, Step, alternate, damping, self_potential, warn_once
from rdmm.transport.softmin import LOG_ZERO, log_convolve
from rdmm.types import Tensor

log = logging.getLogger(__name__)

SHORT_AXIS_VOXELS = 6
"""An axis with this many voxels or fewer is not halved. Not measured."""


@dataclass(frozen=True, eq=False)
class Level:
    """Densities (k, *s) and spacing of one level."""

    a: Tensor
    b: Tensor
    spacing: tuple[float, ...]


def potentials(
    a: Tensor, b: Tensor, spacing: Sequence[float], blur: float, reach: float | None, tolerance: float, iterations: int
) -> Potentials:
    """Potentials of k independent problems.

    Args:
        a, b: densities (k, *s) >= 0, as mass per voxel.
        spacing: voxel size along each axis.
        blur, reach: sqrt(eps) and sqrt(rho), in the same unit of length; reach None: balanced.
        tolerance: marginal error at which a level stops.
        iterations: largest number of iterations on each level.
    """
    levels = _make_levels(a, b, tuple(spacing))
    start: tuple[Tensor, Tensor] | None = None
    for number, level in enumerate(reversed(levels)):
        finest = number == len(levels) - 1
        eps = (blur if finest else max(blur, *level.spacing)) ** 2
        factor = damping(eps, None if reach is None else reach**2)
        to_f, to_g = (_step(x, [h * h / eps for h in level.spacing], factor) for x in (level.b, level.a))
        p = self_potential(level.a, to_g, factor, tolerance, iterations)
        q = self_potential(level.b, to_f, factor, tolerance, iterations)
        if start is None:
            f, g = p.clone(), q.clone()
        else:
            coarse = levels[-number].spacing
            f, g = (prolong(x, coarse, level.spacing, own.shape).div_(eps).add_(own) for own, x in zip((p, q), start, strict=True))
        f, g, error, count = alternate(level.a, f, g, to_f, to_g, factor, tolerance, iterations)
        log.debug("transport %s: %d iterations, marginal error %.3g", "x".join(map(str, p.shape[1:])), count, error)
        if not finest:
            start = f.sub_(p).mul_(eps), g.sub_(q).mul_(eps)
    if error > tolerance:
        warn_once(blur, tolerance, iterations)
    return Potentials(f.mul_(eps), g.mul_(eps), p.mul_(eps), q.mul_(eps), error, count)


def _step(a: Tensor, alpha: Sequence[float], factor: float) -> Step:
    """Half an iteration, u -> -lambda L(log a + u), into a new tensor."""
    return lambda u: log_convolve(log_density(a).add_(u), alpha).mul_(-factor)


def log_density(a: Tensor) -> Tensor:
    """log a; LOG_ZERO where a is 0."""
    return a.clamp_min(1e-37).log_().masked_fill_(a <= 0, LOG_ZERO)


def _make_levels(a: Tensor, b: Tensor, spacing: tuple[float, ...]) -> list[Level]:
    """The pyramid, from fine to coarse."""
    levels = [Level(a, b, spacing)]
    while halved := halved_axes(levels[-1].a.shape[1:], levels[-1].spacing):
        last = levels[-1]
        h = tuple(2 * x if i in halved else x for i, x in enumerate(last.spacing))
        levels.append(Level(coarsen(last.a, halved), coarsen(last.b, halved), h))
    return levels


def halved_axes(shape: Sequence[int], h: Sequence[float]) -> list[int]:
    """Axes that the next coarser level halves: those with nearly the finest spacing, unless they are short."""
    return [i for i in range(len(h)) if h[i] < 1.5 * min(h) and shape[i] > SHORT_AXIS_VOXELS]


def coarsen(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Densities with pairs of voxels along ``axes`` added up."""
    for i in axes:
        axis = i + 1
        if x.shape[axis] % 2:
            x = torch.cat([x, torch.zeros_like(x.narrow(axis, 0, 1))], axis)
        x = x.unflatten(axis, (-1, 2)).sum(axis + 1)
    return x


def prolong(f: Tensor, coarse: Sequence[float], fine: Sequence[float], shape: Sequence[int]) -> Tensor:
    """Interpolate a potential linearly to the next finer level, which is shifted by half a voxel; extrapolate at the edges."""
    for i, (h, k) in enumerate(zip(coarse, fine, strict=True)):
        if h == k:
            continue
        axis, n = i + 1, shape[i + 1]
        first, last = (f.narrow(axis, j, 1) * 2 - f.narrow(axis, m, 1) for j, m in ((0, 1), (f.shape[axis] - 1, f.shape[axis] - 2)))
        padded = torch.cat([first, f, last], axis)
        here, before, after = (padded.narrow(axis, j, f.shape[axis]) for j in (1, 0, 2))
        f = torch.stack([0.75 * here + 0.25 * before, 0.75 * here + 0.25 * after], axis + 1).flatten(axis, axis + 1).narrow(axis, 0, n)
    return f
