"""Time derivatives of momentum and map (EPDiff) on CPU, compiled by numba: one pass for the values, one for the gradients.

    dm = -[sum_j D*_j (v_j m) + (Dv)^T m]      RDMM (3.10) without its source term: model (11) in the flux form of model (16)
    du = -[v + (Du) v]                         model (10)

D_j: the central differences of ``ops.partial``, along each axis a tridiagonal matrix of rows (below, at, above).
D*_j = -D_j^T: the same as D_j inside the grid, and at its walls the flux form for a momentum that is 0 beyond them. So
<dm, v> = 0, and the energy is conserved at the walls too.
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
    """(2, 3, n): entries below, on and above the diagonal, row by row, of the difference matrix and of its transpose."""
    d = np.zeros((3, n))
    if n > 1:
        d[0, 1:], d[2, :-1] = -0.5 / h, 0.5 / h
        d[1, 0], d[2, 0], d[0, -1], d[1, -1] = -1 / h, 1 / h, -1 / h, 1 / h
    t = np.zeros((3, n))
    t[0, 1:], t[1], t[2, :-1] = d[2, :-1], d[1], d[0, 1:]
    return np.stack([d, t]).astype(dtype)


@compiled(fastmath=FAST, inline="always")
def _dx(f, i, c, x, y, z, below, above):  # type: ignore[no-untyped-def]
    """Row c of a tridiagonal matrix along x, applied to component i of f; ``_dy`` and ``_dz``: along y and z."""
    return c[0] * f[i, below, y, z] + c[1] * f[i, x, y, z] + c[2] * f[i, above, y, z]


@compiled(fastmath=FAST, inline="always")
def _dy(f, i, c, x, y, z, below, above):  # type: ignore[no-untyped-def]
    return c[0] * f[i, x, below, z] + c[1] * f[i, x, y, z] + c[2] * f[i, x, above, z]


@compiled(fastmath=FAST, inline="always")
def _dz(f, i, c, x, y, z, below, above):  # type: ignore[no-untyped-def]
    return c[0] * f[i, x, y, below] + c[1] * f[i, x, y, z] + c[2] * f[i, x, y, above]


@compiled(fastmath=FAST, inline="always")
def _flux(v, f, i, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp):  # type: ignore[no-untyped-def]
    """sum_j D_j^T (v_j f_i)."""
    middle = (tx[1] * v[0, x, y, z] + ty[1] * v[1, x, y, z] + tz[1] * v[2, x, y, z]) * f[i, x, y, z]
    along_x = tx[0] * v[0, xm, y, z] * f[i, xm, y, z] + tx[2] * v[0, xp, y, z] * f[i, xp, y, z]
    along_y = ty[0] * v[1, x, ym, z] * f[i, x, ym, z] + ty[2] * v[1, x, yp, z] * f[i, x, yp, z]
    along_z = tz[0] * v[2, x, y, zm] * f[i, x, y, zm] + tz[2] * v[2, x, y, zp] * f[i, x, y, zp]
    return middle + along_x + along_y + along_z


@compiled(fastmath=FAST, inline="always")
def _momentum(m, v, dm, cx, cy, cz, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp):  # type: ignore[no-untyped-def]
    """dm = sum_j D_j^T (v_j m) - (Dv)^T m."""
    sx = sy = sz = m[0, x, y, z] * 0.0
    for j in range(3):
        mj = m[j, x, y, z]
        sx += _dx(v, j, cx, x, y, z, xm, xp) * mj
        sy += _dy(v, j, cy, x, y, z, ym, yp) * mj
        sz += _dz(v, j, cz, x, y, z, zm, zp) * mj
    dm[0, x, y, z] = _flux(v, m, 0, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp) - sx
    dm[1, x, y, z] = _flux(v, m, 1, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp) - sy
    dm[2, x, y, z] = _flux(v, m, 2, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp) - sz


@compiled(fastmath=FAST, inline="always")
def _momentum_back(m, v, g, bm, bv, cx, cy, cz, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp):  # type: ignore[no-untyped-def]
    """Gradients by m and v of sum(g dm)."""
    ax = ay = az = m[0, x, y, z] * 0.0
    for i in range(3):
        gx, gy, gz = _dx(g, i, cx, x, y, z, xm, xp), _dy(g, i, cy, x, y, z, ym, yp), _dz(g, i, cz, x, y, z, zm, zp)
        stretched = g[0, x, y, z] * _dx(v, i, cx, x, y, z, xm, xp) + g[1, x, y, z] * _dy(v, i, cy, x, y, z, ym, yp)
        stretched += g[2, x, y, z] * _dz(v, i, cz, x, y, z, zm, zp)
        bm[i, x, y, z] = v[0, x, y, z] * gx + v[1, x, y, z] * gy + v[2, x, y, z] * gz - stretched
        mi = m[i, x, y, z]
        ax += mi * gx
        ay += mi * gy
        az += mi * gz
    bv[0, x, y, z] = ax - _flux(g, m, 0, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp)
    bv[1, x, y, z] = ay - _flux(g, m, 1, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp)
    bv[2, x, y, z] = az - _flux(g, m, 2, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp)


@compiled(fastmath=FAST, inline="always")
def _map(u, v, du, cx, cy, cz, x, y, z, xm, xp, ym, yp, zm, zp):  # type: ignore[no-untyped-def]
    """du = -v - (Du) v."""
    for i in range(3):
        du[i, x, y, z] = -v[i, x, y, z] - v[0, x, y, z] * _dx(u, i, cx, x, y, z, xm, xp)
        du[i, x, y, z] -= v[1, x, y, z] * _dy(u, i, cy, x, y, z, ym, yp) + v[2, x, y, z] * _dz(u, i, cz, x, y, z, zm, zp)


@compiled(fastmath=FAST, inline="always")
def _map_back(u, v, e, bu, bv, cx, cy, cz, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp):  # type: ignore[no-untyped-def]
    """Gradients by u and v of sum(e du)."""
    ax, ay, az = -e[0, x, y, z], -e[1, x, y, z], -e[2, x, y, z]
    for i in range(3):
        ei = e[i, x, y, z]
        ax -= ei * _dx(u, i, cx, x, y, z, xm, xp)
        ay -= ei * _dy(u, i, cy, x, y, z, ym, yp)
        az -= ei * _dz(u, i, cz, x, y, z, zm, zp)
        bu[i, x, y, z] = -_flux(v, e, i, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp)
    bv[0, x, y, z] = ax
    bv[1, x, y, z] = ay
    bv[2, x, y, z] = az


MOMENTUM, MOMENTUM_BACK, MAP, MAP_BACK = range(4)
"""What ``_sweep`` computes: dm, its gradients, du, its gradients."""


@compiled(fastmath=FAST, parallel=True)
def _sweep(kind, a, v, g, rx, ry, rz, first, second):  # type: ignore[no-untyped-def]
    """Compute one of the four kinds at every voxel, into ``first`` and ``second``; ``a`` is m or u, ``g`` the incoming gradient."""
    _, nx, ny, nz = a.shape
    for x in prange(nx):
        xm, xp = max(x - 1, 0), min(x + 1, nx - 1)
        cx, tx = (rx[0, 0, x], rx[0, 1, x], rx[0, 2, x]), (rx[1, 0, x], rx[1, 1, x], rx[1, 2, x])
        for y in range(ny):
            ym, yp = max(y - 1, 0), min(y + 1, ny - 1)
            cy, ty = (ry[0, 0, y], ry[0, 1, y], ry[0, 2, y]), (ry[1, 0, y], ry[1, 1, y], ry[1, 2, y])
            for z in range(nz):
                cz, tz = (rz[0, 0, z], rz[0, 1, z], rz[0, 2, z]), (rz[1, 0, z], rz[1, 1, z], rz[1, 2, z])
                zm, zp = max(z - 1, 0), min(z + 1, nz - 1)
                if kind == MOMENTUM:
                    _momentum(a, v, first, cx, cy, cz, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp)
                elif kind == MOMENTUM_BACK:
                    _momentum_back(a, v, g, first, second, cx, cy, cz, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp)
                elif kind == MAP:
                    _map(a, v, first, cx, cy, cz, x, y, z, xm, xp, ym, yp, zm, zp)
                else:
                    _map_back(a, v, g, first, second, cx, cy, cz, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp)


@compiled(fastmath=FAST, parallel=True)
def _source_sweep(back, q, h, g, rx, ry, rz, first, second):  # type: ignore[no-untyped-def]
    """sum_i q_i grad h_i into ``first``; with ``back``, the gradients by q and h of its product with g into ``first`` and ``second``."""
    n, nx, ny, nz = q.shape
    for x in prange(nx):
        xm, xp = max(x - 1, 0), min(x + 1, nx - 1)
        cx, tx = (rx[0, 0, x], rx[0, 1, x], rx[0, 2, x]), (rx[1, 0, x], rx[1, 1, x], rx[1, 2, x])
        for y in range(ny):
            ym, yp = max(y - 1, 0), min(y + 1, ny - 1)
            cy, ty = (ry[0, 0, y], ry[0, 1, y], ry[0, 2, y]), (ry[1, 0, y], ry[1, 1, y], ry[1, 2, y])
            for i in range(n):
                for z in range(nz):
                    cz, tz = (rz[0, 0, z], rz[0, 1, z], rz[0, 2, z]), (rz[1, 0, z], rz[1, 1, z], rz[1, 2, z])
                    zm, zp = max(z - 1, 0), min(z + 1, nz - 1)
                    hx, hy, hz = _dx(h, i, cx, x, y, z, xm, xp), _dy(h, i, cy, x, y, z, ym, yp), _dz(h, i, cz, x, y, z, zm, zp)
                    if back:
                        first[i, x, y, z] = g[0, x, y, z] * hx + g[1, x, y, z] * hy + g[2, x, y, z] * hz
                        second[i, x, y, z] = _flux(g, q, i, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp)
                    else:
                        first[0, x, y, z] += q[i, x, y, z] * hx
                        first[1, x, y, z] += q[i, x, y, z] * hy
                        first[2, x, y, z] += q[i, x, y, z] * hz


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
