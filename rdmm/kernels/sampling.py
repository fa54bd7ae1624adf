"""Multilinear sampling on CPU, compiled by numba.

torch's ``grid_sample`` uses one thread for a batch of one. Here the values and both gradients run in parallel, and the order of
every sum is independent of the number of threads: the gradient with respect to the values is computed in slabs of its *result*, and
each slab visits the points that contribute to it in a fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange

from rdmm.kernels.compiled import compiled
from rdmm.types import DivergenceError, Tensor

SLABS = 16
"""Slabs into which the gradient by values is cut: tasks for threads. Fixed, so that results do not depend on the threads. Not measured."""


@compiled(inline="always")
def _cell(p, n):  # type: ignore[no-untyped-def]
    """Lower corner, fraction, and whether p is inside, for a coordinate in voxels, clamped to the grid (NaN to 0).

    A point within 1e-5 voxels of a voxel's center is taken to be the center: the difference is rounding.
    """
    p = min(max(p, 0.0), n - 1.0) if p == p else 0.0
    nearest = np.floor(p + 0.5)
    if abs(p - nearest) < 1e-5:
        p = nearest
    i = min(int(p), max(n - 2, 0))
    return i, p - i, p > 0 and p < n - 1


@compiled(parallel=True)
def _forward(values, points, scale, out):  # type: ignore[no-untyped-def]
    """Write values (c, x, y, z) at points (3, k, l) * scale to out (c, k, l); return the number of points that are not finite."""
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


@compiled(parallel=True)
def _by_points(values, points, scale, grad, out):  # type: ignore[no-untyped-def]
    """Gradient of sum(grad * values at points) with respect to the points (3, k, l); zero where a point is outside the grid.

    At a voxel's center the slope jumps; the mean of both sides is taken, so that a search from the identity prefers no side.
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


@compiled(parallel=True)
def _cell_range(points, scale, n, low, high):  # type: ignore[no-untyped-def]
    """For each row k of points, the first and the last cell along x that contains one."""
    for k in prange(points.shape[1]):
        a, b = n, -1
        for j in range(points.shape[2]):
            x, _, _ = _cell(points[0, k, j] * scale[0], n)
            a, b = min(a, x), max(b, x)
        low[k], high[k] = a, b


@compiled(parallel=True)
def _by_values(points, scale, grad, low, high, out, slabs):  # type: ignore[no-untyped-def]
    """Gradient with respect to the values: scatter grad (c, k, l) into out (c, x, y, z)."""
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


def as_volume(x: np.ndarray) -> np.ndarray:
    """Reshape 2D data (..., x, y) to a volume (..., x, 1, y)."""
    return np.expand_dims(x, -2)


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
        batch = max(values.shape[0], points.shape[0])
        out = torch.empty(batch, values.shape[1], *points.shape[2:], dtype=values.dtype)
        ctx.save_for_backward(values, points)
        ctx.spacing = spacing
        for i, (v, p, o) in enumerate(_items(values, points, out, batch)):
            if _forward(v, p, inverse_spacing(spacing, v.dtype), o):
                raise DivergenceError(f"a map is not finite (image {i} of the batch): the trajectory diverged")
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, points = ctx.saved_tensors
        by_values = torch.zeros_like(values, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        by_points = torch.zeros_like(points, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else None
        for i, (v, p, g) in enumerate(_items(values, points, grad.contiguous(), grad.shape[0])):
            scale = inverse_spacing(ctx.spacing, v.dtype)
            if by_points is not None:
                part = np.empty_like(p)
                _by_points(v, p, scale, g, part)
                axes = part if len(ctx.spacing) == 3 else part[::2]
                by_points[i % points.shape[0]] += torch.from_numpy(axes).view(points.shape[1:])
            if by_values is not None:
                low, high = np.empty(p.shape[1], np.int64), np.empty(p.shape[1], np.int64)
                _cell_range(p, scale, v.shape[1], low, high)
                target = by_values[i % values.shape[0]].numpy()
                _by_values(p, scale, g, low, high, target if target.ndim == 4 else as_volume(target), min(SLABS, v.shape[1]))
        return by_values, by_points, None


def inverse_spacing(spacing: tuple[float, ...], dtype: np.dtype) -> np.ndarray:
    """1 / spacing along three axes; 2D data have spacing 1 along the middle one."""
    full = spacing if len(spacing) == 3 else (spacing[0], 1.0, spacing[1])
    return np.array([1 / h for h in full], dtype=dtype)


def _items(values: Tensor, points: Tensor, third: Tensor, batch: int) -> Any:
    """(values (c, x, y, z), points (3, k, l), third (c, k, l)) of each batch item, 2D as volumes with y = 0."""
    v, p = values.detach().contiguous().numpy(), points.detach().contiguous().numpy()
    rows = p.shape[2] if p.ndim > 3 else 1
    p = p.reshape(p.shape[0], p.shape[1], rows, -1)
    if p.shape[1] == 2:
        v, p = as_volume(v), np.stack([p[:, 0], np.zeros_like(p[:, 0]), p[:, 1]], 1)
    t = third.detach().numpy().reshape(batch, third.shape[1], rows, -1)
    for i in range(batch):
        yield v[i % v.shape[0]], p[i % p.shape[0]], t[i]


def sample(values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Values (b, c, *s) at points (b, d, *t) in units of ``spacing``, linear, constant beyond the edges; (b, c, *t).

    Raises:
        DivergenceError: a point is not finite.
    """
    return _Sample.apply(values, points.to(values.dtype), spacing)
