"""Gaussian smoothers in the spectral domain: K_sigma has the Fourier symbol exp(-2 pi^2 sigma^2 |k|^2), model (3).

The symbol depends on |k|^2 alone, so K is diagonal in products of *real* one-dimensional waves. Along each axis the
waves are the columns of a small matrix B (n, M), and K m = B diag(symbol) B^T m costs 2d matrix products. Waves that even
the narrowest Gaussian suppresses are left out, so for a fixed sigma M does not grow with n: the cost is linear in voxels.
The boundary condition determines the waves:

    zero      sines and cosines of the grid, padded by the radius of the widest Gaussian (linear convolution)
    periodic  sines and cosines of the grid itself
    reflect   the cosines of the DCT-II; constants stay constant
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F

from rdmm.spatial.grid import Grid
from rdmm.types import Tensor

PRODUCTS = 32
"""Parts of a product of matrices: at least as many as there are threads, or else one of them is cut in its turn. Not measured."""

Boundary = Literal["zero", "periodic", "reflect"]


def _tolerance(dtype: torch.dtype) -> float:
    """Symbols below this are set to 0, and kernels are cut off where they fall below it: less than the rounding of an energy."""
    return 1e-12 if dtype == torch.float64 else 1e-5


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # as in Grid: what is cached can have gradients later
def _waves(
    n: int, h: float, narrow: float, wide: float, boundary: Boundary, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Orthonormal waves (n, M) of one axis and their frequencies (M,), cycles per domain unit.

    ``narrow`` and ``wide``: the smallest and largest sigma, in domain units.
    """
    log = math.log(1 / _tolerance(dtype))
    highest = math.sqrt(log / 2) / (math.pi * narrow) if narrow > 0 else math.inf
    x = torch.arange(n, dtype=torch.float64)
    if boundary == "reflect":
        k = torch.arange(n, dtype=torch.float64)
        waves = torch.cos(math.pi * k * (x[:, None] + 0.5) / n) * math.sqrt(2 / n)
        waves[:, 0] /= math.sqrt(2)
        frequency = k / (2 * n * h)
    else:
        period = n if boundary == "periodic" else n + math.ceil(wide * math.sqrt(2 * log) / h)
        k = torch.arange(period // 2 + 1, dtype=torch.float64)
        k = k[k / (period * h) <= highest]
        phase = 2 * math.pi * k * x[:, None] / period
        single = (k == 0) | (2 * k == period)  # the constant and, for an even period, the Nyquist wave have no sine
        scale = torch.where(single, 1.0, math.sqrt(2.0)) / math.sqrt(period)
        waves = torch.cat([torch.cos(phase) * scale, (torch.sin(phase) * scale)[:, ~single]], 1)
        frequency = torch.cat([k, k[~single]]) / (period * h)
    keep = frequency <= highest
    return waves[:, keep].to(device, dtype), frequency[keep].to(device, dtype)


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Apply ``matrix`` (m, n) along one axis of ``x``."""
    shape = x.shape
    trailing = math.prod(shape[axis + 1 :])
    if trailing == 1:
        out = x.reshape(-1, shape[axis]) @ matrix.T
    else:
        out = torch.matmul(matrix, x.reshape(-1, shape[axis], trailing))
    return out.reshape(*shape[:axis], matrix.shape[0], *shape[axis + 1 :])


Gain = Literal["filter", "root", "inverse root"]
"""Functions of the symbol (see ``_gains``)."""


@lru_cache(maxsize=48)
@torch.inference_mode(False)
def _gains(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    sigmas: tuple[float, ...],
    weights: tuple[float, ...],
    boundary: Boundary,
    gain: Gain,
    delta: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list[Tensor], Tensor]:
    """Waves (n, M) of each axis, and the gain of each product of waves, (M_1..M_d).

    With the symbol s = sum_i weights_i exp(-2 pi^2 sigma_i^2 |k|^2): ``filter`` s, ``root`` s^{1/2} / (s + delta), ``inverse
    root`` (s + delta) / s^{1/2}.
    """
    waves = [_waves(n, h, sigmas[0], sigmas[-1], boundary, dtype, device) for n, h in zip(shape, spacing, strict=True)]
    squares = [k.square().view(-1, *(1,) * (len(shape) - 1 - i)) for i, (_, k) in enumerate(waves)]
    k2 = sum(squares[1:], squares[0])
    s = torch.zeros_like(k2)
    for sigma, weight in zip(sigmas, weights, strict=True):
        s = s + weight * gaussian_symbol(sigma, k2)
    if gain != "filter":
        s = s.sqrt() / (s + delta) if gain == "root" else (s + delta) / s.sqrt()
    return [basis for basis, _ in waves], s


def _apply_gains(x: Tensor, bases: list[Tensor], gains: Tensor) -> Tensor:
    """B diag(gains) B^T x along the last axes."""
    axes = range(x.ndim - len(bases), x.ndim)
    for axis, basis in zip(reversed(axes), reversed(bases), strict=True):
        x = _along(basis.T, x, axis)
    x = x * gains
    for axis, basis in zip(axes, bases, strict=True):
        x = _along(basis, x, axis)
    return x


class _SelfAdjoint(torch.autograd.Function):
    """One filter for each x[:, i] of x (b, n, c, *s). Each is self-adjoint, so the gradient is the same filter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Sequence[tuple[list[Tensor], Tensor]]) -> Tensor:
        ctx.filters = filters
        with torch.autocast(x.device.type, enabled=False):
            return torch.stack([_apply_gains(x[:, i], *f) for i, f in enumerate(filters)], 1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _SelfAdjoint.apply(g, ctx.filters), None


def spectral_filter(
    x: Tensor, grid: Grid, sigmas: Sequence[float], weights: Sequence[float], boundary: Boundary, gain: Gain = "filter", delta: float = 0.0
) -> Tensor:
    """B diag(gain) B^T x for x (b, c, *s), sigmas increasing, in domain units; self-adjoint by construction."""
    f = _gains(grid.shape, grid.spacing, tuple(sigmas), tuple(weights), boundary, gain, delta, x.dtype, x.device)
    return _SelfAdjoint.apply(x.unsqueeze(1), [f]).squeeze(1)


def filter_bank(x: Tensor, grid: Grid, sigmas: Sequence[float], boundary: Boundary) -> Tensor:
    """K_{sigma_i} x_i for x (b, n, c, *s), with one Gaussian for each i; each uses only the waves that it passes."""
    filters = [_gains(grid.shape, grid.spacing, (s,), (1.0,), boundary, "filter", 0.0, x.dtype, x.device) for s in sigmas]
    return _SelfAdjoint.apply(x, filters)


def gaussian_symbol(sigma: float, k2: Tensor) -> Tensor:
    """exp(-2 pi^2 sigma^2 |k|^2)."""
    return torch.exp(-2 * math.pi**2 * sigma**2 * k2)


def gaussian(x: Tensor, sigma: float, grid: Grid, boundary: Boundary = "reflect") -> Tensor:
    """G_sigma * x for x (b, c, *s), sigma in domain units; constants stay constant at the default boundary."""
    return x if sigma == 0 else spectral_filter(x, grid, (sigma,), (1.0,), boundary)


def _by_rows(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """``_along`` as a batch of PRODUCTS small products, each on one thread: the bits of a single one depend on the number of threads."""
    lines = x.movedim(axis, -1)
    rows = lines.reshape(-1, lines.shape[-1])
    width = -(-len(rows) // PRODUCTS)
    batch = F.pad(rows, (0, 0, 0, PRODUCTS * width - len(rows))).view(PRODUCTS, width, -1)
    out = torch.bmm(batch, matrix.T.expand(PRODUCTS, -1, -1)).flatten(0, 1)[: len(rows)]
    return out.view(*lines.shape[:-1], -1).movedim(-1, axis)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _shrinking(n: int, h: float, m: int, k: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(m, n) from n voxels of width h along an axis to m of width k: a blur at the voxels, linear between them.

    The blur turns a voxel of width h into one of width k: its variance is (k^2 - h^2) / 4.
    """
    sigma = 0.5 * math.sqrt(k**2 - h**2)
    waves, frequency = _waves(n, h, sigma, sigma, "reflect", torch.float64, torch.device("cpu"))
    position = torch.linspace(0, n - 1, m, dtype=torch.float64)
    low = position.long().clamp(0, n - 2)
    share = (position - low)[:, None]
    between = (1 - share) * waves[low] + share * waves[low + 1]
    return _by_rows(waves, between * gaussian_symbol(sigma, frequency**2), 1).to(device, dtype)


def shrink(x: Tensor, grid: Grid, coarse: Grid) -> Tensor:
    """Resample x (b, c, *s) from ``grid`` to ``coarse``, of the same frame, along the axes that become coarser, without aliasing.

    Axis after axis is multiplied by one small matrix, so that the next one has fewer voxels already. Other axes do not change.
    """
    for axis, (n, h, m, k) in enumerate(zip(grid.shape, grid.spacing, coarse.shape, coarse.spacing, strict=True), x.ndim - grid.ndim):
        if k > h * (1 + 1e-6):
            with torch.autocast(x.device.type, enabled=False):
                x = _by_rows(_shrinking(n, h, m, k, x.dtype, x.device), x, axis)
    return x.contiguous()
