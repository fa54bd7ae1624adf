"""Transport between densities on one grid, at the cost |x - y|^2 / 2: the potentials, coarse to fine.

A level of the pyramid has the blur of its own voxel. Its own p and q are found at once; f - p and g - q, smooth where f and g
are not, come from the coarser level.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rdmm.transport.convolution import EMPTY, log_convolve
from rdmm.transport.iteration import Potentials, alternate, damping, self_potential
from rdmm.types import Tensor

log = logging.getLogger(__name__)

SMALLEST = 6
"""Voxels along an axis that is not made coarser."""


@dataclass(frozen=True, eq=False)
class Level:
    """Log-densities (k, *s) and spacing of one level."""

    log_a: Tensor
    log_b: Tensor
    spacing: tuple[float, ...]


def potentials(
    a: Tensor, b: Tensor, spacing: Sequence[float], blur: float, reach: float | None, tolerance: float, iterations: int
) -> Potentials:
    """Of densities a, b (k, *s) >= 0 in masses per voxel, k independent problems."""
    levels = _pyramid(log_density(a), log_density(b), tuple(spacing))
    start: tuple[Tensor, Tensor] | None = None
    for number, level in enumerate(reversed(levels)):
        eps = (blur if number == len(levels) - 1 else max(blur, *level.spacing)) ** 2
        alpha, share = [h * h / eps for h in level.spacing], damping(eps, reach)

        def step(log_density: Tensor, alpha: Sequence[float] = alpha, share: float = share):  # type: ignore[no-untyped-def]
            return lambda u: log_convolve(log_density + u, alpha).mul_(-share)

        to_f, to_g, mass = step(level.log_b), step(level.log_a), level.log_a.exp()
        p = self_potential(mass, to_g, share, tolerance, iterations)
        q = self_potential(level.log_b.exp(), to_f, share, tolerance, iterations)
        f, g = p, q
        if start is not None:
            coarse = levels[-number].spacing
            f, g = (own + prolong(x, coarse, level.spacing, own.shape) / eps for own, x in zip((p, q), start, strict=True))
        f, g, error, count = alternate(mass, f, g, to_f, to_g, share, tolerance, iterations)
        log.debug("transport %s: %d iterations, marginal error %.3g", "x".join(map(str, p.shape[1:])), count, error)
        start = (f - p) * eps, (g - q) * eps
    return Potentials(f * eps, g * eps, p * eps, q * eps, error, count)


def log_density(a: Tensor) -> Tensor:
    """log a, EMPTY where a is 0."""
    return torch.where(a > 0, a.clamp_min(1e-37).log(), EMPTY)


def _pyramid(log_a: Tensor, log_b: Tensor, spacing: tuple[float, ...]) -> list[Level]:
    levels = [Level(log_a, log_b, spacing)]
    while True:
        last = levels[-1]
        halved = halved_axes(last.log_a.shape[1:], last.spacing)
        if not halved:
            return levels
        a, b = (coarser(x, halved) for x in (last.log_a, last.log_b))
        levels.append(Level(a, b, tuple(2 * x if i in halved else x for i, x in enumerate(last.spacing))))


def halved_axes(shape: Sequence[int], h: Sequence[float]) -> list[int]:
    """Axes that a coarser level has half as many voxels along: those of the finest spacing, unless they are short."""
    return [i for i in range(len(h)) if h[i] < 1.5 * min(h) and shape[i] > SMALLEST]


def coarser(x: Tensor, axes: Sequence[int]) -> Tensor:
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
