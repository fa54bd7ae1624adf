"""The Eulerian rates of LDDMM and RDMM on CPU, compiled by numba: one pass forward, one back.

    dm = -[sum_j d_j (v_j m) + (Dv)^T m],    du = -[v + (Du) v]

with the central differences of ``ops.partial``: along each axis a tridiagonal matrix of rows (below, at, above).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange

from rdmm.types import Tensor


def _rows(n: int, h: float, dtype: np.dtype) -> np.ndarray:
    """(2, 3, n): the difference matrix's entries below, at and above the diagonal by row, and its transpose's."""
    d = np.zeros((3, n))
    if n > 1:
        d[0, 1:], d[2, :-1] = -0.5 / h, 0.5 / h
        d[1, 0], d[2, 0], d[0, -1], d[1, -1] = -1 / h, 1 / h, -1 / h, 1 / h
    t = np.zeros((3, n))
    t[0, 1:], t[1], t[2, :-1] = d[2, :-1], d[1], d[0, 1:]
    return np.stack([d, t]).astype(dtype)


@njit(cache=True, fastmath=True, inline="always")
def _rates_at(m, u, v, cx, cy, cz, x, y, z, xm, xp, ym, yp, zm, zp, dm, du):  # type: ignore[no-untyped-def]
    vx, vy, vz = v[0, x, y, z], v[1, x, y, z], v[2, x, y, z]
    for i in range(3):
        flux = cx[0] * v[0, xm, y, z] * m[i, xm, y, z] + cx[1] * vx * m[i, x, y, z] + cx[2] * v[0, xp, y, z] * m[i, xp, y, z]
        flux += cy[0] * v[1, x, ym, z] * m[i, x, ym, z] + cy[1] * vy * m[i, x, y, z] + cy[2] * v[1, x, yp, z] * m[i, x, yp, z]
        flux += cz[0] * v[2, x, y, zm] * m[i, x, y, zm] + cz[1] * vz * m[i, x, y, z] + cz[2] * v[2, x, y, zp] * m[i, x, y, zp]
        dm[i, x, y, z] = -flux
        along = (cx[0] * u[i, xm, y, z] + cx[1] * u[i, x, y, z] + cx[2] * u[i, xp, y, z]) * vx
        along += (cy[0] * u[i, x, ym, z] + cy[1] * u[i, x, y, z] + cy[2] * u[i, x, yp, z]) * vy
        along += (cz[0] * u[i, x, y, zm] + cz[1] * u[i, x, y, z] + cz[2] * u[i, x, y, zp]) * vz
        du[i, x, y, z] = -v[i, x, y, z] - along
    sx, sy, sz = 0.0 * vx, 0.0 * vx, 0.0 * vx
    for j in range(3):
        mj = m[j, x, y, z]
        sx += (cx[0] * v[j, xm, y, z] + cx[1] * v[j, x, y, z] + cx[2] * v[j, xp, y, z]) * mj
        sy += (cy[0] * v[j, x, ym, z] + cy[1] * v[j, x, y, z] + cy[2] * v[j, x, yp, z]) * mj
        sz += (cz[0] * v[j, x, y, zm] + cz[1] * v[j, x, y, z] + cz[2] * v[j, x, y, zp]) * mj
    dm[0, x, y, z] -= sx
    dm[1, x, y, z] -= sy
    dm[2, x, y, z] -= sz


@njit(cache=True, fastmath=True, parallel=True)
def _rates(m, u, v, rx, ry, rz, dm, du):  # type: ignore[no-untyped-def]
    _, nx, ny, nz = m.shape
    for x in prange(nx):
        xm, xp, cx = max(x - 1, 0), min(x + 1, nx - 1), (rx[0, 0, x], rx[0, 1, x], rx[0, 2, x])
        for y in range(ny):
            ym, yp, cy = max(y - 1, 0), min(y + 1, ny - 1), (ry[0, 0, y], ry[0, 1, y], ry[0, 2, y])
            inner = (rz[0, 0, 1], rz[0, 1, 1], rz[0, 2, 1])
            for z in range(1, nz - 1):
                _rates_at(m, u, v, cx, cy, inner, x, y, z, xm, xp, ym, yp, z - 1, z + 1, dm, du)
            for z in (0, nz - 1):
                cz = (rz[0, 0, z], rz[0, 1, z], rz[0, 2, z])
                _rates_at(m, u, v, cx, cy, cz, x, y, z, xm, xp, ym, yp, max(z - 1, 0), min(z + 1, nz - 1), dm, du)


@njit(cache=True, fastmath=True, inline="always")
def _pullback_at(m, u, v, g, e, cx, cy, cz, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp, bm, bu, bv):  # type: ignore[no-untyped-def]
    """Gradients by m, u, v of sum(g dm + e du)."""
    vx, vy, vz = v[0, x, y, z], v[1, x, y, z], v[2, x, y, z]
    ax, ay, az = -e[0, x, y, z], -e[1, x, y, z], -e[2, x, y, z]
    for i in range(3):
        gx = tx[0] * g[i, xm, y, z] + tx[1] * g[i, x, y, z] + tx[2] * g[i, xp, y, z]
        gy = ty[0] * g[i, x, ym, z] + ty[1] * g[i, x, y, z] + ty[2] * g[i, x, yp, z]
        gz = tz[0] * g[i, x, y, zm] + tz[1] * g[i, x, y, z] + tz[2] * g[i, x, y, zp]
        turned = g[0, x, y, z] * (cx[0] * v[i, xm, y, z] + cx[1] * v[i, x, y, z] + cx[2] * v[i, xp, y, z])
        turned += g[1, x, y, z] * (cy[0] * v[i, x, ym, z] + cy[1] * v[i, x, y, z] + cy[2] * v[i, x, yp, z])
        turned += g[2, x, y, z] * (cz[0] * v[i, x, y, zm] + cz[1] * v[i, x, y, z] + cz[2] * v[i, x, y, zp])
        bm[i, x, y, z] = -(vx * gx + vy * gy + vz * gz) - turned
        mi, ei = m[i, x, y, z], e[i, x, y, z]
        ax -= mi * gx + ei * (cx[0] * u[i, xm, y, z] + cx[1] * u[i, x, y, z] + cx[2] * u[i, xp, y, z])
        ay -= mi * gy + ei * (cy[0] * u[i, x, ym, z] + cy[1] * u[i, x, y, z] + cy[2] * u[i, x, yp, z])
        az -= mi * gz + ei * (cz[0] * u[i, x, y, zm] + cz[1] * u[i, x, y, z] + cz[2] * u[i, x, y, zp])
        back = tx[0] * e[i, xm, y, z] * v[0, xm, y, z] + tx[1] * ei * vx + tx[2] * e[i, xp, y, z] * v[0, xp, y, z]
        back += ty[0] * e[i, x, ym, z] * v[1, x, ym, z] + ty[1] * ei * vy + ty[2] * e[i, x, yp, z] * v[1, x, yp, z]
        back += tz[0] * e[i, x, y, zm] * v[2, x, y, zm] + tz[1] * ei * vz + tz[2] * e[i, x, y, zp] * v[2, x, y, zp]
        bu[i, x, y, z] = -back
    for j in range(3):
        s = tx[0] * g[0, xm, y, z] * m[j, xm, y, z] + tx[1] * g[0, x, y, z] * m[j, x, y, z] + tx[2] * g[0, xp, y, z] * m[j, xp, y, z]
        s += ty[0] * g[1, x, ym, z] * m[j, x, ym, z] + ty[1] * g[1, x, y, z] * m[j, x, y, z] + ty[2] * g[1, x, yp, z] * m[j, x, yp, z]
        s += tz[0] * g[2, x, y, zm] * m[j, x, y, zm] + tz[1] * g[2, x, y, z] * m[j, x, y, z] + tz[2] * g[2, x, y, zp] * m[j, x, y, zp]
        bv[j, x, y, z] = -s
    bv[0, x, y, z] += ax
    bv[1, x, y, z] += ay
    bv[2, x, y, z] += az


@njit(cache=True, fastmath=True, parallel=True)
def _pullback(m, u, v, g, e, rx, ry, rz, bm, bu, bv):  # type: ignore[no-untyped-def]
    _, nx, ny, nz = m.shape
    for x in prange(nx):
        xm, xp = max(x - 1, 0), min(x + 1, nx - 1)
        cx, tx = (rx[0, 0, x], rx[0, 1, x], rx[0, 2, x]), (rx[1, 0, x], rx[1, 1, x], rx[1, 2, x])
        for y in range(ny):
            ym, yp = max(y - 1, 0), min(y + 1, ny - 1)
            cy, ty = (ry[0, 0, y], ry[0, 1, y], ry[0, 2, y]), (ry[1, 0, y], ry[1, 1, y], ry[1, 2, y])
            for z in range(nz):
                cz, tz = (rz[0, 0, z], rz[0, 1, z], rz[0, 2, z]), (rz[1, 0, z], rz[1, 1, z], rz[1, 2, z])
                zm, zp = max(z - 1, 0), min(z + 1, nz - 1)
                _pullback_at(m, u, v, g, e, cx, cy, cz, tx, ty, tz, x, y, z, xm, xp, ym, yp, zm, zp, bm, bu, bv)


def _volumes(x: Tensor) -> np.ndarray:
    """(b, 3, x, y, z): a 2D field with y = 0 and no component along it."""
    a = x.detach().contiguous().numpy()
    return a if a.ndim == 5 else np.stack([a[:, 0], np.zeros_like(a[:, 0]), a[:, 1]], 1)[:, :, :, None]


def _fields(a: np.ndarray, d: int) -> Tensor:
    return torch.from_numpy(a if d == 3 else np.ascontiguousarray(a[:, ::2, :, 0]))


class _Rates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, u: Tensor, v: Tensor, spacing: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        fields = [_volumes(x) for x in (m, u, v)]
        full = spacing if len(spacing) == 3 else (spacing[0], 1.0, spacing[1])
        rows = [_rows(n, h, fields[0].dtype) for n, h in zip(fields[0].shape[2:], full, strict=True)]
        dm, du = np.empty_like(fields[0]), np.empty_like(fields[0])
        for b in range(len(dm)):
            _rates(*[f[b] for f in fields], *rows, dm[b], du[b])  # type: ignore[call-arg]
        ctx.save_for_backward(m, u, v)
        ctx.rows = rows
        return _fields(dm, len(spacing)), _fields(du, len(spacing))

    @staticmethod
    def backward(ctx: Any, g: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        fields = [_volumes(x) for x in (*ctx.saved_tensors, g, e)]
        out = [np.empty_like(fields[0]) for _ in range(3)]
        for b in range(len(out[0])):
            _pullback(*[f[b] for f in fields], *ctx.rows, *[o[b] for o in out])
        return (*(_fields(o, g.ndim - 2) for o in out), None)  # type: ignore[return-value]


def rates(m: Tensor, u: Tensor, v: Tensor, spacing: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """(d_t m without source, d_t u) for momentum m, displacement u, velocity v, (b, d, *s) each."""
    return _Rates.apply(m, u, v, spacing)
