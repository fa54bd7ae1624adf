"""Multilinear sampling and the barrier against folds on CPU, compiled by numba.

torch's ``grid_sample`` runs a batch of one on one thread. Here forward and both gradients run in parallel, and every sum is
taken in the same order whatever the number of threads: the scatter of the gradient by values is cut into slabs of its
*result*, each of which visits the points that reach it in their own order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange

from rdmm.types import DivergenceError, Tensor

SLABS = 16


@njit(cache=True, inline="always")
def _cell(p, n):  # type: ignore[no-untyped-def]
    """Lower corner, fraction, and whether p is inside, for a coordinate in voxels, clamped to the grid (NaN to 0).

    What rounding put beside a voxel's centre is taken to be on it.
    """
    inside = p > 0 and p < n - 1
    p = min(max(p, 0.0), n - 1.0) if p == p else 0.0
    nearest = np.floor(p + 0.5)
    if abs(p - nearest) < 1e-5:
        p = nearest
    i = min(int(p), max(n - 2, 0))
    return i, p - i, inside


@njit(cache=True, parallel=True)
def _forward(values, points, scale, out):  # type: ignore[no-untyped-def]
    """(c, x, y, z) at points (3, k, l) * scale -> out (c, k, l); the number of points that are not finite."""
    c, nx, ny, nz = values.shape
    bad = 0
    sy, sz = min(1, ny - 1), min(1, nz - 1)
    for k in prange(points.shape[1]):
        for j in range(points.shape[2]):
            px, py, pz = points[0, k, j] * scale[0], points[1, k, j] * scale[1], points[2, k, j] * scale[2]
            if not np.isfinite(px + py + pz):
                bad += 1
            x, fx, _ = _cell(px, nx)
            y, fy, _ = _cell(py, ny)
            z, fz, _ = _cell(pz, nz)
            gx, gy, gz = 1 - fx, 1 - fy, 1 - fz
            for a in range(c):
                v = values[a]
                low = gy * (gz * v[x, y, z] + fz * v[x, y, z + sz]) + fy * (gz * v[x, y + sy, z] + fz * v[x, y + sy, z + sz])
                high = gy * (gz * v[x + 1, y, z] + fz * v[x + 1, y, z + sz]) + fy * (
                    gz * v[x + 1, y + sy, z] + fz * v[x + 1, y + sy, z + sz]
                )
                out[a, k, j] = gx * low + fx * high
    return bad


@njit(cache=True, parallel=True)
def _by_points(values, points, scale, grad, out):  # type: ignore[no-untyped-def]
    """Gradient by points (3, k, l) of sum(grad * values at points); zero where a point is beyond the grid.

    At a voxel's centre, where the slope jumps, it is the mean of both sides: the identity is a start that prefers no side.
    """
    c, nx, ny, nz = values.shape
    sy, sz = min(1, ny - 1), min(1, nz - 1)
    for k in prange(points.shape[1]):
        for j in range(points.shape[2]):
            x, fx, in_x = _cell(points[0, k, j] * scale[0], nx)
            y, fy, in_y = _cell(points[1, k, j] * scale[1], ny)
            z, fz, in_z = _cell(points[2, k, j] * scale[2], nz)
            gx, gy, gz = 1 - fx, 1 - fy, 1 - fz
            left = x - 1 if fx == 0 and in_x else x
            front = y - 1 if fy == 0 and in_y else y
            below = z - 1 if fz == 0 and in_z else z
            dx = dy = dz = 0.0 * fx
            for a in range(c):
                v, g = values[a], grad[a, k, j]
                v000, v001, v010, v011 = v[x, y, z], v[x, y, z + sz], v[x, y + sy, z], v[x, y + sy, z + sz]
                v100, v101, v110, v111 = v[x + 1, y, z], v[x + 1, y, z + sz], v[x + 1, y + sy, z], v[x + 1, y + sy, z + sz]
                a00, a01, a10, a11 = gx * v000 + fx * v100, gx * v001 + fx * v101, gx * v010 + fx * v110, gx * v011 + fx * v111
                b0, b1 = gz * v000 + fz * v001, gz * v010 + fz * v011
                c0, c1 = gz * v100 + fz * v101, gz * v110 + fz * v111
                if left != x:
                    b0 = gz * v[left, y, z] + fz * v[left, y, z + sz]
                    b1 = gz * v[left, y + sy, z] + fz * v[left, y + sy, z + sz]
                dx += g * (gy * (c0 - b0) + fy * (c1 - b1))
                y00, y01 = a00, a01
                if front != y:
                    y00 = gx * v[x, front, z] + fx * v[x + 1, front, z]
                    y01 = gx * v[x, front, z + sz] + fx * v[x + 1, front, z + sz]
                dy += g * (gz * (a10 - y00) + fz * (a11 - y01))
                z00, z10 = a00, a10
                if below != z:
                    z00 = gx * v[x, y, below] + fx * v[x + 1, y, below]
                    z10 = gx * v[x, y + sy, below] + fx * v[x + 1, y + sy, below]
                dz += g * (gy * (a01 - z00) + fy * (a11 - z10))
            out[0, k, j] = dx * scale[0] / (x - left + 1) if in_x else 0.0
            out[1, k, j] = dy * scale[1] / (y - front + 1) if in_y else 0.0
            out[2, k, j] = dz * scale[2] / (z - below + 1) if in_z else 0.0


@njit(cache=True, parallel=True)
def _reach(points, scale, n, low, high):  # type: ignore[no-untyped-def]
    """First and last cell along x that the points of each row k fall in."""
    for k in prange(points.shape[1]):
        a, b = n, -1
        for j in range(points.shape[2]):
            x, _, _ = _cell(points[0, k, j] * scale[0], n)
            a, b = min(a, x), max(b, x)
        low[k], high[k] = a, b


@njit(cache=True, parallel=True)
def _by_values(points, scale, grad, low, high, out, slabs):  # type: ignore[no-untyped-def]
    """Gradient by values: scatters grad (c, k, l) into out (c, x, y, z)."""
    c, nx, ny, nz = out.shape
    sy, sz = min(1, ny - 1), min(1, nz - 1)
    for s in prange(slabs):
        first, last = s * nx // slabs, (s + 1) * nx // slabs
        for k in range(points.shape[1]):
            if high[k] < first - 1 or low[k] >= last:
                continue
            for j in range(points.shape[2]):
                x, fx, _ = _cell(points[0, k, j] * scale[0], nx)
                if x < first - 1 or x >= last:
                    continue
                y, fy, _ = _cell(points[1, k, j] * scale[1], ny)
                z, fz, _ = _cell(points[2, k, j] * scale[2], nz)
                gy, gz = 1 - fy, 1 - fz
                for i in range(2):
                    if first <= x + i < last:
                        wx = fx if i else 1 - fx
                        for a in range(c):
                            g, o = wx * grad[a, k, j], out[a, x + i]
                            o[y, z] += g * gy * gz
                            o[y, z + sz] += g * gy * fz
                            o[y + sy, z] += g * fy * gz
                            o[y + sy, z + sz] += g * fy * fz


def _volume(x: np.ndarray) -> np.ndarray:
    """Axes (..., x, y) of 2D data as (..., x, 1, y)."""
    return np.expand_dims(x, -2)


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
        batch = max(values.shape[0], points.shape[0])
        out = torch.empty(batch, values.shape[1], *points.shape[2:], dtype=values.dtype)
        ctx.save_for_backward(values, points)
        ctx.spacing = spacing
        for i, (v, p, o) in enumerate(_items(values, points, out, batch)):
            if _forward(v, p, _scale(spacing, v.dtype), o):
                raise DivergenceError(f"a map is not finite (image {i} of the batch): the trajectory diverged")
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, points = ctx.saved_tensors
        by_values = torch.zeros_like(values, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        by_points = torch.zeros_like(points, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else None
        for i, (v, p, g) in enumerate(_items(values, points, grad.contiguous(), grad.shape[0])):
            scale = _scale(ctx.spacing, v.dtype)
            if by_points is not None:
                part = np.empty_like(p)
                _by_points(v, p, scale, g, part)
                axes = part if len(ctx.spacing) == 3 else part[::2]
                by_points[i % points.shape[0]] += torch.from_numpy(axes).view(points.shape[1:])
            if by_values is not None:
                low, high = np.empty(p.shape[1], np.int64), np.empty(p.shape[1], np.int64)
                _reach(p, scale, v.shape[1], low, high)
                target = by_values[i % values.shape[0]].numpy()
                _by_values(p, scale, g, low, high, target if target.ndim == 4 else _volume(target), min(SLABS, v.shape[1]))
        return by_values, by_points, None


def _scale(spacing: tuple[float, ...], dtype: np.dtype) -> np.ndarray:
    """1 / spacing along three axes."""
    full = spacing if len(spacing) == 3 else (spacing[0], 1.0, spacing[1])
    return np.array([1 / h for h in full], dtype=dtype)


def _items(values: Tensor, points: Tensor, third: Tensor, batch: int) -> Any:
    """(values (c, x, y, z), points (3, k, l), third (c, k, l)) of each batch item, 2D as volumes with y = 0."""
    v, p = values.detach().contiguous().numpy(), points.detach().contiguous().numpy()
    rows = p.shape[2] if p.ndim > 3 else 1
    p = p.reshape(p.shape[0], p.shape[1], rows, -1)
    if p.shape[1] == 2:
        v, p = _volume(v), np.stack([p[:, 0], np.zeros_like(p[:, 0]), p[:, 1]], 1)
    t = third.detach().numpy().reshape(batch, third.shape[1], rows, -1)
    for i in range(batch):
        yield v[i % v.shape[0]], p[i % p.shape[0]], t[i]


def sample(values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Values (b, c, *s) at points (b, d, *t) in units of ``spacing``, linear, constant beyond the edges; (b, c, *t).

    Raises:
        DivergenceError: a point is not finite.
    """
    return _Sample.apply(values, points.to(values.dtype), spacing)


@njit(cache=True, inline="always")
def _edge(u, scale, axis, x, y, z, step):  # type: ignore[no-untyped-def]
    """Edge of the deformed cell from a corner along an axis, over its undeformed length, pointing up the axis."""
    xx, yy, zz = x + (step if axis == 0 else 0), y + (step if axis == 1 else 0), z + (step if axis == 2 else 0)
    a = (u[0, xx, yy, zz] - u[0, x, y, z]) * step * scale[0] + (1.0 if axis == 0 else 0.0)
    b = (u[1, xx, yy, zz] - u[1, x, y, z]) * step * scale[1] + (1.0 if axis == 1 else 0.0)
    c = (u[2, xx, yy, zz] - u[2, x, y, z]) * step * scale[2] + (1.0 if axis == 2 else 0.0)
    return a, b, c


@njit(cache=True, inline="always")
def _edges(u, scale, x, y, z, i, j, k, flat):  # type: ignore[no-untyped-def]
    """The three edges at corner (i, j, k) of cell (x, y, z); a 2D cell's second one stays as it is."""
    cx, cy, cz = x + i, y + j, z + k
    e = _edge(u, scale, 0, cx, cy, cz, 1 - 2 * i)
    f = (0.0 * e[0], 1.0 + 0.0 * e[0], 0.0 * e[0]) if flat else _edge(u, scale, 1, cx, cy, cz, 1 - 2 * j)
    g = _edge(u, scale, 2, cx, cy, cz, 1 - 2 * k)
    return e, f, g


@njit(cache=True, inline="always")
def _cross(a, b):  # type: ignore[no-untyped-def]
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@njit(cache=True, parallel=True)
def _barrier_value(u, scale, floor, sums):  # type: ignore[no-untyped-def]
    """Sums of (floor - det)_+^2 over each layer of cells."""
    _, nx, ny, nz = u.shape
    flat = ny == 1
    for x in prange(nx - 1):
        total = 0.0
        for y in range(1 if flat else ny - 1):
            for z in range(nz - 1):
                for i in range(2):
                    for j in range(1 if flat else 2):
                        for k in range(2):
                            e, f, g = _edges(u, scale, x, y, z, i, j, k, flat)
                            n = _cross(f, g)
                            short = floor - (e[0] * n[0] + e[1] * n[1] + e[2] * n[2])
                            if short > 0:
                                total += short * short
        sums[x] = total


@njit(cache=True)
def _barrier_gradient(u, scale, floor, sums, out):  # type: ignore[no-untyped-def]
    """Adds the gradient of the sum of ``sums``; serial, since only few layers have anything to add."""
    _, nx, ny, nz = u.shape
    flat = ny == 1
    for x in range(nx - 1):
        if sums[x] == 0:
            continue
        for y in range(1 if flat else ny - 1):
            for z in range(nz - 1):
                for i in range(2):
                    for j in range(1 if flat else 2):
                        for k in range(2):
                            e, f, g = _edges(u, scale, x, y, z, i, j, k, flat)
                            n = _cross(f, g)
                            short = floor - (e[0] * n[0] + e[1] * n[1] + e[2] * n[2])
                            if short <= 0:
                                continue
                            cx, cy, cz, factor = x + i, y + j, z + k, -2 * short
                            m, o = _cross(g, e), _cross(e, f)
                            for a in range(3):
                                w = factor * scale[a]
                                s = w * n[a] * (1 - 2 * i)
                                out[a, cx + 1 - 2 * i, cy, cz] += s
                                out[a, cx, cy, cz] -= s
                                if not flat:
                                    s = w * m[a] * (1 - 2 * j)
                                    out[a, cx, cy + 1 - 2 * j, cz] += s
                                    out[a, cx, cy, cz] -= s
                                s = w * o[a] * (1 - 2 * k)
                                out[a, cx, cy, cz + 1 - 2 * k] += s
                                out[a, cx, cy, cz] -= s


class _Barrier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, spacing: tuple[float, ...], floor: float) -> Tensor:
        fields = u.detach().contiguous().numpy()
        if len(spacing) == 2:
            fields = _volume(np.stack([fields[:, 0], np.zeros_like(fields[:, 0]), fields[:, 1]], 1))
        scale, count = _scale(spacing, fields.dtype), 2 ** len(spacing) * np.prod([n - 1 for n in u.shape[2:]])
        out, gradient = np.zeros(len(fields)), np.zeros_like(fields)
        for b, field in enumerate(fields):
            sums = np.zeros(field.shape[1] - 1)
            _barrier_value(field, scale, floor, sums)
            out[b] = sums.sum() / count
            if ctx.needs_input_grad[0] and out[b] > 0:
                _barrier_gradient(field, scale, floor, sums, gradient[b])
        gradient = gradient[:, ::2, :, 0] if len(spacing) == 2 else gradient
        ctx.save_for_backward(torch.from_numpy(np.ascontiguousarray(gradient)) / float(count))
        return torch.from_numpy(out).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * g.view(-1, *(1,) * (gradient.ndim - 1)), None, None


def barrier(u: Tensor, spacing: tuple[float, ...], floor: float) -> Tensor:
    """(b,) mean over cells and corners of (floor - det)_+^2 for phi = id + u, u (b, d, *s) in units of ``spacing``."""
    return _Barrier.apply(u, spacing, floor)
