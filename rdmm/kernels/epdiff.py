"""Time derivatives of momentum and map (EPDiff) on CPU, compiled by numba: one pass for the values, one for the gradients.

    dm = -[sum_j D*_j (v_j m) + (Dv)^T m]      RDMM (3.10) without its source term: model (11) in the flux form of model (16)
    du = -[v + (Du) v]                         model (10)

D_j: the differences of the fourth order of ``high_order.differences``, along each axis a matrix of five diagonals.
D*_j = -D_j^T: the same as D_j inside the grid, and at its walls the flux form for a momentum that is 0 beyond them. So
<dm, v> = 0, and the energy is conserved at the walls too.

Places along an axis are tuples of five voxels: two below, the voxel itself, two above.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from rdmm.kernels.compiled import FAST, compiled
from rdmm.types import Tensor


@lru_cache(maxsize=64)
def _rows(n: int, h: float, dtype: np.dtype) -> np.ndarray:
    """(2, 5, n): the five diagonals, row by row, of the difference matrix (fourth order; central beside the walls, one-sided at them)
    and of its transpose."""
    d = np.zeros((n, n + 4))
    for i in range(n):
        d[i, i : i + 5] = (1 / 12, -2 / 3, 0, 2 / 3, -1 / 12) if 2 <= i < n - 2 else (0, -0.5, 0, 0.5, 0)
    if n > 1:
        d[0, 1:4], d[-1, -4:-1] = (0, -1, 1), (-1, 1, 0)
    full = np.zeros((n, n + 4))
    full[:, 2:-2] = d[:, 2:-2].T
    return (np.stack([[[a[i, i + k] for i in range(n)] for k in range(5)] for a in (d, full)]) / h).astype(dtype)


@compiled(fastmath=FAST, inline="always")
def _dx(f, i, c, x, y, z):  # type: ignore[no-untyped-def]
    """A row c of the matrix along x, applied to component i of f at the places x; ``_dy`` and ``_dz``: along y and z."""
    b, e = y[2], z[2]
    outer = c[0] * f[i, x[0], b, e] + c[4] * f[i, x[4], b, e]
    return outer + (c[1] * f[i, x[1], b, e] + c[3] * f[i, x[3], b, e]) + c[2] * f[i, x[2], b, e]


@compiled(fastmath=FAST, inline="always")
def _dy(f, i, c, x, y, z):  # type: ignore[no-untyped-def]
    a, e = x[2], z[2]
    outer = c[0] * f[i, a, y[0], e] + c[4] * f[i, a, y[4], e]
    return outer + (c[1] * f[i, a, y[1], e] + c[3] * f[i, a, y[3], e]) + c[2] * f[i, a, y[2], e]


@compiled(fastmath=FAST, inline="always")
def _dz(f, i, c, x, y, z):  # type: ignore[no-untyped-def]
    a, b = x[2], y[2]
    outer = c[0] * f[i, a, b, z[0]] + c[4] * f[i, a, b, z[4]]
    return outer + (c[1] * f[i, a, b, z[1]] + c[3] * f[i, a, b, z[3]]) + c[2] * f[i, a, b, z[2]]


@compiled(fastmath=FAST, inline="always")
def _flux(v, f, i, tx, ty, tz, x, y, z):  # type: ignore[no-untyped-def]
    """sum_j D_j^T (v_j f_i)."""
    a, b, e = x[2], y[2], z[2]
    outer = tx[0] * v[0, x[0], b, e] * f[i, x[0], b, e] + tx[4] * v[0, x[4], b, e] * f[i, x[4], b, e]
    outer += ty[0] * v[1, a, y[0], e] * f[i, a, y[0], e] + ty[4] * v[1, a, y[4], e] * f[i, a, y[4], e]
    outer += tz[0] * v[2, a, b, z[0]] * f[i, a, b, z[0]] + tz[4] * v[2, a, b, z[4]] * f[i, a, b, z[4]]
    inner = tx[1] * v[0, x[1], b, e] * f[i, x[1], b, e] + tx[3] * v[0, x[3], b, e] * f[i, x[3], b, e]
    inner += ty[1] * v[1, a, y[1], e] * f[i, a, y[1], e] + ty[3] * v[1, a, y[3], e] * f[i, a, y[3], e]
    inner += tz[1] * v[2, a, b, z[1]] * f[i, a, b, z[1]] + tz[3] * v[2, a, b, z[3]] * f[i, a, b, z[3]]
    return outer + inner + (tx[2] * v[0, a, b, e] + ty[2] * v[1, a, b, e] + tz[2] * v[2, a, b, e]) * f[i, a, b, e]


@compiled(fastmath=FAST, inline="always")
def _momentum(m, v, dm, cx, cy, cz, tx, ty, tz, x, y, z):  # type: ignore[no-untyped-def]
    """dm = sum_j D_j^T (v_j m) - (Dv)^T m."""
    a, b, e = x[2], y[2], z[2]
    sx = sy = sz = m[0, a, b, e] * 0.0
    for j in range(3):
        mj = m[j, a, b, e]
        sx += _dx(v, j, cx, x, y, z) * mj
        sy += _dy(v, j, cy, x, y, z) * mj
        sz += _dz(v, j, cz, x, y, z) * mj
    dm[0, a, b, e] = _flux(v, m, 0, tx, ty, tz, x, y, z) - sx
    dm[1, a, b, e] = _flux(v, m, 1, tx, ty, tz, x, y, z) - sy
    dm[2, a, b, e] = _flux(v, m, 2, tx, ty, tz, x, y, z) - sz


@compiled(fastmath=FAST, inline="always")
def _momentum_back(m, v, g, bm, bv, cx, cy, cz, tx, ty, tz, x, y, z):  # type: ignore[no-untyped-def]
    """Gradients by m and v of sum(g dm)."""
    a, b, e = x[2], y[2], z[2]
    ax = ay = az = m[0, a, b, e] * 0.0
    for i in range(3):
        gx, gy, gz = _dx(g, i, cx, x, y, z), _dy(g, i, cy, x, y, z), _dz(g, i, cz, x, y, z)
        stretched = g[0, a, b, e] * _dx(v, i, cx, x, y, z) + g[1, a, b, e] * _dy(v, i, cy, x, y, z)
        stretched += g[2, a, b, e] * _dz(v, i, cz, x, y, z)
        bm[i, a, b, e] = v[0, a, b, e] * gx + v[1, a, b, e] * gy + v[2, a, b, e] * gz - stretched
        mi = m[i, a, b, e]
        ax += mi * gx
        ay += mi * gy
        az += mi * gz
    bv[0, a, b, e] = ax - _flux(g, m, 0, tx, ty, tz, x, y, z)
    bv[1, a, b, e] = ay - _flux(g, m, 1, tx, ty, tz, x, y, z)
    bv[2, a, b, e] = az - _flux(g, m, 2, tx, ty, tz, x, y, z)


@compiled(fastmath=FAST, inline="always")
def _map(u, v, du, cx, cy, cz, x, y, z):  # type: ignore[no-untyped-def]
    """du = -v - (Du) v."""
    a, b, e = x[2], y[2], z[2]
    for i in range(3):
        du[i, a, b, e] = -v[i, a, b, e] - v[0, a, b, e] * _dx(u, i, cx, x, y, z)
        du[i, a, b, e] -= v[1, a, b, e] * _dy(u, i, cy, x, y, z) + v[2, a, b, e] * _dz(u, i, cz, x, y, z)


@compiled(fastmath=FAST, inline="always")
def _map_back(u, v, e, bu, bv, cx, cy, cz, tx, ty, tz, x, y, z):  # type: ignore[no-untyped-def]
    """Gradients by u and v of sum(e du)."""
    a, b, c = x[2], y[2], z[2]
    ax, ay, az = -e[0, a, b, c], -e[1, a, b, c], -e[2, a, b, c]
    for i in range(3):
        ei = e[i, a, b, c]
        ax -= ei * _dx(u, i, cx, x, y, z)
        ay -= ei * _dy(u, i, cy, x, y, z)
        az -= ei * _dz(u, i, cz, x, y, z)
        bu[i, a, b, c] = -_flux(v, e, i, tx, ty, tz, x, y, z)
    bv[0, a, b, c] = ax
    bv[1, a, b, c] = ay
    bv[2, a, b, c] = az


MOMENTUM, MOMENTUM_BACK, MAP, MAP_BACK = range(4)
"""What ``_sweep`` computes: dm, its gradients, du, its gradients."""


@compiled(inline="always")
def _around(i, n):  # type: ignore[no-untyped-def]
    """The places i - 2 to i + 2 along an axis of n voxels; beyond the walls, where the entry of the row is 0, those at the walls."""
    return max(i - 2, 0), max(i - 1, 0), i, min(i + 1, n - 1), min(i + 2, n - 1)


@compiled(inline="always")
def _row(rows, kind, i):  # type: ignore[no-untyped-def]
    """Row i of the difference matrix (kind 0) or of its transpose (1)."""
    return rows[kind, 0, i], rows[kind, 1, i], rows[kind, 2, i], rows[kind, 3, i], rows[kind, 4, i]


@compiled(fastmath=FAST, parallel=True)
def _sweep(kind, a, v, g, rx, ry, rz, first, second):  # type: ignore[no-untyped-def]
    """Compute one of the four kinds at every voxel, into ``first`` and ``second``; ``a`` is m or u, ``g`` the incoming gradient."""
    _, nx, ny, nz = a.shape
    for i in prange(nx):
        x, cx, tx = _around(i, nx), _row(rx, 0, i), _row(rx, 1, i)
        for j in range(ny):
            y, cy, ty = _around(j, ny), _row(ry, 0, j), _row(ry, 1, j)
            for k in range(nz):
                z, cz, tz = _around(k, nz), _row(rz, 0, k), _row(rz, 1, k)
                if kind == MOMENTUM:
                    _momentum(a, v, first, cx, cy, cz, tx, ty, tz, x, y, z)
                elif kind == MOMENTUM_BACK:
                    _momentum_back(a, v, g, first, second, cx, cy, cz, tx, ty, tz, x, y, z)
                elif kind == MAP:
                    _map(a, v, first, cx, cy, cz, x, y, z)
                else:
                    _map_back(a, v, g, first, second, cx, cy, cz, tx, ty, tz, x, y, z)


@compiled(fastmath=FAST, parallel=True)
def _source_sweep(back, q, h, g, rx, ry, rz, first, second):  # type: ignore[no-untyped-def]
    """sum_i q_i grad h_i into ``first``; with ``back``, the gradients by q and h of its product with g into ``first`` and ``second``."""
    n, nx, ny, nz = q.shape
    for i in prange(nx):
        x, cx, tx = _around(i, nx), _row(rx, 0, i), _row(rx, 1, i)
        for j in range(ny):
            y, cy, ty = _around(j, ny), _row(ry, 0, j), _row(ry, 1, j)
            for c in range(n):
                for k in range(nz):
                    z, cz, tz = _around(k, nz), _row(rz, 0, k), _row(rz, 1, k)
                    hx, hy, hz = _dx(h, c, cx, x, y, z), _dy(h, c, cy, x, y, z), _dz(h, c, cz, x, y, z)
                    if back:
                        first[c, i, j, k] = g[0, i, j, k] * hx + g[1, i, j, k] * hy + g[2, i, j, k] * hz
                        second[c, i, j, k] = _flux(g, q, c, tx, ty, tz, x, y, z)
                    else:
                        first[0, i, j, k] += q[c, i, j, k] * hx
                        first[1, i, j, k] += q[c, i, j, k] * hy
                        first[2, i, j, k] += q[c, i, j, k] * hz


def _volumes(x: Tensor) -> np.ndarray:
    """Fields as (b, 3, x, y, z). A 2D field becomes a volume with one voxel along y, whose component along y is 0."""
    a = x.detach().contiguous().numpy()
    return a if a.ndim == 5 else np.stack([a[:, 0], np.zeros_like(a[:, 0]), a[:, 1]], 1)[:, :, :, None]


def _fields(a: np.ndarray, d: int) -> Tensor:
    return torch.from_numpy(a if d == 3 else np.ascontiguousarray(a[:, ::2, :, 0]))


class _Rate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, v: Tensor, spacing: tuple[float, ...], kinds: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(a, v)
        ctx.spacing, ctx.kind = spacing, kinds[1]
        return _run(kinds[0], a, v, a, spacing)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, v = ctx.saved_tensors
        return *_run(ctx.kind, a, v, g, ctx.spacing), None, None


def _all_rows(a: np.ndarray, spacing: tuple[float, ...]) -> list[np.ndarray]:
    """``_rows`` of the three axes of volumes a (b, c, x, y, z)."""
    full = spacing if len(spacing) == 3 else (spacing[0], 1.0, spacing[1])
    return [_rows(n, h, a.dtype) for n, h in zip(a.shape[2:], full, strict=True)]


def _run(kind: int, a: Tensor, v: Tensor, g: Tensor, spacing: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    fields = [_volumes(x) for x in (a, v, g)]
    rows = _all_rows(fields[0], spacing)
    first, second = np.empty_like(fields[0]), np.empty_like(fields[0])
    for b in range(len(first)):
        _sweep(kind, *[f[b] for f in fields], *rows, first[b], second[b])
    return _fields(first, len(spacing)), _fields(second, len(spacing))


def momentum_rate(m: Tensor, v: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """d_t m without the source term, model (16), for momentum m and velocity v, (b, d, *s) each."""
    return _Rate.apply(m, v, spacing, (MOMENTUM, MOMENTUM_BACK))


def map_rate(u: Tensor, v: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """d_t u, model (10), for displacement u and velocity v, (b, d, *s) each."""
    return _Rate.apply(u, v, spacing, (MAP, MAP_BACK))


def _channels(x: Tensor) -> np.ndarray:
    """(b, n, x, y, z) of channels (b, n, *s); in 2D with one voxel along y."""
    a = x.detach().contiguous().numpy()
    return a if a.ndim == 5 else a[:, :, :, None]


class _Source(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, h: Tensor, spacing: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(q, h)
        ctx.spacing = spacing
        fields = _channels(q), _channels(h)
        out = np.zeros((len(q), 3, *fields[0].shape[2:]), fields[0].dtype)
        for b in range(len(q)):
            _source_sweep(False, fields[0][b], fields[1][b % len(h)], out[b], *_all_rows(out, spacing), out[b], out[b])
        return _fields(out, len(spacing))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        q, h = ctx.saved_tensors
        fields, by = (_channels(q), _channels(h), _volumes(g)), (torch.empty_like(q), q.new_empty(len(q), *h.shape[1:]))
        for b in range(len(q)):
            one = (fields[0][b], fields[1][b % len(h)], fields[2][b])
            _source_sweep(True, *one, *_all_rows(fields[2], ctx.spacing), *(_channels(x)[b] for x in by))
        return by[0], by[1].sum_to_size(h.shape), None


def source(q: Tensor, h: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """sum_i q_i grad h_i (b, d, *s), model (12), of q (b, n, *s) and pre-weights h (b, n, *s), or (1, n, *s) for all."""
    return _Source.apply(q, h, spacing)
