"""Debiased Wasserstein barycenters of densities on a grid, model (42), in logarithms and coarse to fine; transfer along a plan, model (43).

Debiased: the barycenter of equal densities is that density, not a blurred one (Janati, Cuturi, Gramfort, ICML 2020, algorithm 1).

With K the Gaussian of variance eps, scalings u_k, v_k of each density a_k and d of the barycenter b itself:

    v_k = a_k / K u_k,    b = d prod_k (K v_k)^{w_k},    u_k = b / K v_k,    d = sqrt(d b / K d).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from rdmm.transport.on_grids import coarsen, halved_axes, log_density, prolong
from rdmm.transport.sinkhorn import self_potential
from rdmm.transport.softmin import LOG_ZERO, log_convolve
from rdmm.types import ConfigError, InputError, Tensor

log = logging.getLogger(__name__)


def barycenter(a: Tensor, weights: Sequence[float], spacing: Sequence[float], blur: float, tolerance: float, iterations: int) -> Tensor:
    """The density b (*s) of mass 1 that minimizes sum_k w_k S(a_k, b), S the Sinkhorn divergence at the cost |x - y|^2 / 2.

    Args:
        a: densities (k, *s) >= 0; each counts as a mass of 1.
        weights: (k,) >= 0; normalized to sum 1.
        spacing: voxel size along each axis.
        blur: sqrt(eps), in the same unit of length.
        tolerance: a level stops when one iteration changes b by less (L1).
        iterations: largest number of iterations on each level.

    Raises:
        ConfigError: unusable weights, blur or tolerance.
        InputError: densities that are negative or not finite, or one without mass.
    """
    w = torch.as_tensor(list(weights), dtype=a.dtype, device=a.device)
    if w.shape != a.shape[:1] or bool((w < 0).any()) or not 0 < float(w.sum()) < math.inf:
        raise ConfigError(f"a barycenter of {len(a)} densities needs as many weights, >= 0, finite and not all 0; got {list(weights)}")
    for name, value in (("blur", blur), ("tolerance", tolerance)):
        if not 0 < value < math.inf:
            raise ConfigError(f"a barycenter's {name} is a number > 0, not {value}")
    masses = a.flatten(1).sum(1)
    if bool((a < 0).any()) or not bool(((masses > 0) & masses.isfinite()).all()):
        raise InputError("a barycenter needs densities that are finite, >= 0, and not 0 everywhere; scale or clip the images")
    kept = w > 0
    w, a = (w[kept] / w.sum()).view(-1, *(1,) * (a.ndim - 1)), a[kept]
    levels = [(a / a.flatten(1).sum(1).view_as(w), tuple(spacing))]
    while axes := halved_axes(levels[-1][0].shape[1:], levels[-1][1]):
        finer, h = levels[-1]
        levels.append((coarsen(finer, axes), tuple(2 * x if i in axes else x for i, x in enumerate(h))))
    log_b = log_u = None
    for number, (densities, h) in enumerate(reversed(levels)):
        logs = log_density(densities)
        eps = (blur if number == len(levels) - 1 else max(blur, *h)) ** 2
        alpha = [x * x / eps for x in h]
        if log_b is None or log_u is None:
            log_b = torch.full_like(logs[:1], -math.log(logs[0].numel()))
            log_d = log_b + _self_potential(log_b, alpha)
            log_u = log_d.expand_as(logs)
        else:
            coarse = levels[-number][1]
            ratio = 2.0 ** sum(x != y for x, y in zip(h, coarse, strict=True))
            log_b = prolong(log_b, coarse, h, logs.shape) - math.log(ratio)
            log_d = log_b + _self_potential(log_b, alpha)
            log_u = log_d + prolong(log_u, coarse, h, logs.shape) / eps
        log_b, log_u, log_d = _iterate(logs, w, log_b, log_u, log_d, alpha, tolerance, iterations)
        log_u = (log_u - log_d) * eps  # smooth, and so a good start for the next finer level
    assert log_b is not None
    b = log_b[0].exp()
    return b / b.sum()


def _self_potential(log_b: Tensor, alpha: Sequence[float]) -> Tensor:
    """The potential p of (b, b), by at most 50 iterations to an error of 1e-3. Not measured: only a start, which the iteration corrects."""
    return self_potential(log_b.exp(), lambda p: -log_convolve(log_b + p, alpha), 1.0, 1e-3, 50)


def _iterate(
    logs: Tensor, w: Tensor, log_b: Tensor, log_u: Tensor, log_d: Tensor, alpha: Sequence[float], tolerance: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Iterate the equations in the head of this file on one level; returns log b, log u and log d."""
    count, change = 0, math.inf
    while change > tolerance and count < iterations:
        log_v = (logs - log_convolve(log_u.clone(), alpha)).clamp_min(LOG_ZERO)
        log_kv = log_convolve(log_v, alpha)
        before = log_b
        log_b = log_d + (w * log_kv).sum(0, keepdim=True)
        log_b = log_b - torch.logsumexp(log_b.flatten(), 0)
        log_u = log_b - log_kv
        log_d = 0.5 * (log_d + log_b - log_convolve(log_d.clone(), alpha))
        count, change = count + 1, float((log_b.exp() - before.exp()).abs().sum())
    log.debug("barycenter %s: %d iterations, change %.3g", "x".join(map(str, logs.shape[1:])), count, change)
    return log_b, log_u, log_d


def transfer_along_plan(values: Iterable[Tensor], a: Tensor, f: Tensor, spacing: Sequence[float], blur: float) -> Iterator[Tensor]:
    """Transfer values along the plan: for each target point the plan-weighted mean over the source.

    Args:
        values: several images (*s) >= 0 on the source, e.g. one for each label, 1 in it and 0 elsewhere.
        a: the source density (*s).
        f: its potential (*s).
        spacing: voxel size along each axis.
        blur: sqrt(eps), in the same unit of length.

    Yields:
        (*s) sum_x pi(x, y) values(x) / sum_x pi(x, y), one after the other: there may be too many for the memory.
    """
    eps = blur**2
    alpha = [h * h / eps for h in spacing]
    source = log_density(a[None]) + f[None] / eps
    whole = log_convolve(source.clone(), alpha)
    for v in values:
        part = log_convolve((source + log_density(v[None])).clamp_min(LOG_ZERO), alpha)
        yield torch.exp((part - whole).clamp_max(50))[0]
