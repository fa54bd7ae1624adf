"""Gaussian smoothers in the spectral domain: K_sigma has the Fourier symbol exp(-2 pi^2 sigma^2 |k|^2), model (3).

The symbol depends on |k|^2 alone, so K is diagonal in products of *real* one-dimensional waves. Along each axis the
waves are the columns of a small matrix B (n, M), and K m = B diag(symbol) B^T m costs 2d matrix products. Waves that even
the narrowest Gaussian suppresses are left out, so for a fixed sigma M does not grow with n: the cost is linear in voxels.
The boundary condition determines the waves:

    zero      sines and cosines of the grid, padded by the radius of the widest Gaussian (linear convolution)
    periodic  sines and cosines of the grid itself
    reflect   the cosines of the DCT-II; constants stay constant
    slip      of vector fields: component i is a sine along axis i and cosines along the others, in a box around the grid. Nothing flows
              through the walls of the box. The wave vector k of a wave is real, so a field splits into a part along k, which compresses,
              and a part across it, which does not: ``compressibility`` is the gain of the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F

from rdmm.spatial.grid import Grid
from rdmm.spatial.ops import along
from rdmm.types import Tensor

PRODUCTS = 32
"""Parts of a product of matrices: at least as many as there are threads, or else one of them is cut in its turn. Not measured."""

Boundary = Literal["zero", "periodic", "reflect", "slip"]

SLIP_MARGIN = 0.4
"""Distance of the walls of ``slip`` from the grid, over the widest sigma: tissue flows into and out of the field of view."""


def _tolerance(dtype: torch.dtype) -> float:
    """Symbols below this are set to 0, and kernels are cut off where they fall below it: less than the rounding of an energy."""
    return 1e-12 if dtype == torch.float64 else 1e-5


Wave = Literal["cosine", "sine", "both"]


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # as in Grid: what is cached can have gradients later
def _waves(n: int, h: float, narrow: float, margin: float, wave: Wave, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Orthonormal waves (n, M) of one axis and their frequencies (M,), cycles per domain unit.

    Args:
        narrow: the smallest sigma, in domain units.
        margin: by which the waves reach beyond the grid: in domain units, and in whole voxels. ``both`` reach beyond one end only.
        wave: the cosines or the sines of half periods; or ``both`` of whole periods.
    """
    highest = math.sqrt(math.log(1 / _tolerance(dtype)) / 2) / (math.pi * narrow) if narrow > 0 else math.inf
    x, beyond = torch.arange(n, dtype=torch.float64), math.ceil(margin / h)
    if wave == "both":
        period = n + beyond
        k = torch.arange(period // 2 + 1, dtype=torch.float64)
        k = k[k / (period * h) <= highest]
        phase = 2 * math.pi * k * x[:, None] / period
        single = (k == 0) | (2 * k == period)  # the constant and, for an even period, the Nyquist wave have no sine
        scale = torch.where(single, 1.0, math.sqrt(2.0)) / math.sqrt(period)
        waves = torch.cat([torch.cos(phase) * scale, (torch.sin(phase) * scale)[:, ~single]], 1)
        frequency = torch.cat([k, k[~single]]) / (period * h)
    else:
        period = n + 2 * beyond
        k = torch.arange(period + 1, dtype=torch.float64)
        phase = math.pi * k * (x[:, None] + beyond + 0.5) / period
        waves = (torch.cos(phase) if wave == "cosine" else torch.sin(phase)) * math.sqrt(2 / period)
        waves[:, [0, -1]] /= math.sqrt(2)  # the first cosine is the constant, the last sine the Nyquist wave; the others of these are 0
        frequency = k / (2 * period * h)
    keep = frequency <= highest
    return waves[:, keep].to(device, dtype), frequency[keep].to(device, dtype)


Gain = Literal["filter", "root", "inverse root", "filtered root"]
"""Functions of the symbol s: s, g = s^{1/2} / (s + delta), 1 / g, and s g, model (27)."""


@dataclass(frozen=True, eq=False)
class Filter:
    """x -> B A B^T x for fields x (b, c, *s), with waves B and gains A: self-adjoint.

    Args:
        bases: waves of each axis: (n, M), or (d, n, M) where they differ by component.
        gains: of each product of waves, (M_1..M_d).
        direction: unit wave vectors (d, M_1..M_d), of ``slip``; None: the gains are the same along and across the wave vector.
        compressibility: further gain of what is along the wave vector.
    """

    bases: list[Tensor]
    gains: Tensor
    direction: Tensor | None = None
    compressibility: float = 1.0

    def analyze(self, x: Tensor) -> Tensor:
        """Coefficients B^T x, (b, c, M_1..M_d)."""
        axes = range(x.ndim - len(self.bases), x.ndim)
        for axis, basis in zip(reversed(axes), reversed(self.bases), strict=True):
            x = along(basis.mT, x, axis)
        return x

    def synthesize(self, a: Tensor) -> Tensor:
        """The field B a, (b, c, *s), of coefficients a."""
        for axis, basis in enumerate(self.bases, a.ndim - len(self.bases)):
            a = along(basis, a, axis)
        return a

    def scale(self, a: Tensor) -> Tensor:
        """A a of coefficients a."""
        a = a * self.gains
        if self.direction is None or self.compressibility == 1:
            return a
        compressing = (a * self.direction).sum(1, keepdim=True)
        return a - (1 - self.compressibility) * compressing * self.direction

    def __call__(self, x: Tensor) -> Tensor:
        return self.synthesize(self.scale(self.analyze(x)))


@lru_cache(maxsize=48)
@torch.inference_mode(False)
def _filter(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    sigmas: tuple[float, ...],
    weights: tuple[float, ...],
    boundary: Boundary,
    compressibility: float,
    wide: float,
    gain: Gain,
    delta: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Filter:
    """The filter with the symbol s = sum_i weights_i exp(-2 pi^2 sigma_i^2 |k|^2); ``wide`` is the sigma that sets the margin."""
    margin = {"zero": wide * math.sqrt(2 * math.log(1 / _tolerance(dtype))), "slip": SLIP_MARGIN * wide}.get(boundary, 0.0)
    waves: list[Wave] = ["cosine", "sine"] if boundary == "slip" else ["cosine"] if boundary == "reflect" else ["both"]
    axes = [[_waves(n, h, sigmas[0], margin, wave, dtype, device) for wave in waves] for n, h in zip(shape, spacing, strict=True)]
    d = len(shape)
    k = [axis[0][1].view(-1, *(1,) * (d - 1 - i)) for i, axis in enumerate(axes)]
    squares = [x.square() for x in k]
    k2 = sum(squares[1:], squares[0])
    s = torch.zeros_like(k2)
    for sigma, weight in zip(sigmas, weights, strict=True):
        s = s + weight * gaussian_symbol(sigma, k2)
    bases, direction = [axis[0][0] for axis in axes], None
    if boundary == "slip":
        bases = [torch.stack([axis[i == j][0] for i in range(d)]) for j, axis in enumerate(axes)]
        direction = torch.stack([x.expand(k2.shape) for x in k]) / k2.sqrt().clamp_min(torch.finfo(dtype).tiny)
    if gain == "filter":
        return Filter(bases, s, direction, compressibility)
    root = s.sqrt() / (s + delta)
    if gain == "root":
        return Filter(bases, root, direction, compressibility**-0.5 if compressibility else 0.0)
    return Filter(bases, s * root if gain == "filtered root" else 1 / root, direction, compressibility**0.5)


class _SelfAdjoint(torch.autograd.Function):
    """One filter for each x[:, i] of x (b, n, c, *s). Each is self-adjoint, so the gradient is the same filter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Sequence[Filter]) -> Tensor:
        ctx.filters = filters
        return torch.stack([f(x[:, i]) for i, f in enumerate(filters)], 1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _SelfAdjoint.apply(g, ctx.filters), None


def spectral_filter(
    grid: Grid,
    like: Tensor,
    sigmas: Sequence[float],
    weights: Sequence[float],
    boundary: Boundary,
    *,
    compressibility: float = 1.0,
    gain: Gain = "filter",
    delta: float = 0.0,
    wide: float | None = None,
) -> Filter:
    """The filter of several Gaussians, for fields of the dtype and device of ``like``; sigmas increasing, in domain units.

    Args:
        wide: the widest Gaussian in use, for the margin; default: of ``sigmas``.
    """
    widest = sigmas[-1] if wide is None else wide
    key = (tuple(sigmas), tuple(weights), boundary, compressibility, widest, gain, delta, like.dtype, like.device)
    return _filter(grid.shape, grid.spacing, *key)


def filtered(x: Tensor, filters: Sequence[Filter]) -> Tensor:
    """One filter for each x[:, i] of x (b, n, c, *s); gradients by the same filters."""
    return _SelfAdjoint.apply(x, filters)


def gaussian_symbol(sigma: float, k2: Tensor) -> Tensor:
    """exp(-2 pi^2 sigma^2 |k|^2)."""
    return torch.exp(-2 * math.pi**2 * sigma**2 * k2)


def gaussian(x: Tensor, sigma: float, grid: Grid, boundary: Boundary = "reflect") -> Tensor:
    """G_sigma * x for x (b, c, *s), sigma in domain units; constants stay constant at the default boundary."""
    return x if sigma == 0 else filtered(x.unsqueeze(1), [spectral_filter(grid, x, (sigma,), (1.0,), boundary)]).squeeze(1)


def _by_rows(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """``ops.along`` as a batch of PRODUCTS small products, each on one thread: the bits of a single one depend on the number of threads."""
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
    waves, frequency = _waves(n, h, sigma, 0.0, "cosine", torch.float64, torch.device("cpu"))
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
