"""Multilinear sampling on CPU, compiled by numba.

torch's ``grid_sample`` uses one thread for a batch of one. Here the values and both gradients run in parallel, and the order of
every sum is independent of the number of threads: the gradient with respect to the values is computed in slabs of its *result*, and
each slab visits the points that contribute to it in a fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import get_num_threads, prange
from torch.autograd.function import once_differentiable

from rdmm.kernels.compiled import compiled
from rdmm.types import DivergenceError, Tensor


@compiled()  # not inlined by numba, whose analysis of parallel loops fails on tuples in tuples
def _numbers(scale, nx, ny, nz):  # type: ignore[no-untyped-def]
    """1, the distance that is rounding, and the last coordinate along each axis, in the type of ``scale``: a wider one would be slower."""
    kind = scale.dtype.type
    return kind(1), kind(1e-5), (kind(nx - 1), kind(ny - 1), kind(nz - 1))


@compiled(inline="always")
def _cell(p, last, one, rounding):  # type: ignore[no-untyped-def]
    """Lower corner and fraction of a coordinate in voxels, clamped to [0, last] (NaN to 0), and whether it is strictly inside.

    A point within ``rounding`` of a voxel's center is taken to be the center.
    """
    zero = one - one
    p = min(max(p, zero), last) if p == p else zero
    nearest = np.floor(p + one / (one + one))
    p = nearest if abs(p - nearest) < rounding else p
    low = max(min(np.floor(p), last - one), zero)
    return np.uint64(low), p - low, p > zero and p < last


@compiled()
def _strides(nx, ny, nz):  # type: ignore[no-untyped-def]
    """Distance in memory of neighbors along each axis of (x, y, z); 0 along an axis of one voxel."""
    return np.uint64(ny * nz * min(1, nx - 1)), np.uint64(nz * min(1, ny - 1)), np.uint64(min(1, nz - 1))


@compiled(inline="always")
def _index(x, y, z, ny, nz):  # type: ignore[no-untyped-def]
    """Place in memory of a voxel of (x, y, z)."""
    return (x * np.uint64(ny) + y) * np.uint64(nz) + z


@compiled(inline="always")
def _cover(p, last, one):  # type: ignore[no-untyped-def]
    """1 in the grid, falling to 0 within a voxel outside: the sum of the weights of the voxels in the grid."""
    return max(one - one, min(one, min(p + one, last + one - p)))


@compiled(parallel=True)
def _forward(v, shape, points, scale, covered, out):  # type: ignore[no-untyped-def]
    """Write values (c, *shape), flat, at points (3, k, l) * scale to out (c, k, l); return the number of points that are not finite.

    With ``covered`` the values outside the grid are 0, and else those of the edge.
    """
    nx, ny, nz = shape
    n = np.uint64(nx * ny * nz)
    sx, sy, sz = _strides(nx, ny, nz)
    one, rounding, last = _numbers(scale, nx, ny, nz)
    bad = 0
    for k in prange(points.shape[1]):
        for j in range(points.shape[2]):
            px, py, pz = points[0, k, j] * scale[0], points[1, k, j] * scale[1], points[2, k, j] * scale[2]
            if not np.isfinite(px + py + pz):
                bad += 1
            x, fx, _ = _cell(px, last[0], one, rounding)
            y, fy, _ = _cell(py, last[1], one, rounding)
            z, fz, _ = _cell(pz, last[2], one, rounding)
            gx, gy, gz = one - fx, one - fy, one - fz
            if covered:
                cover = _cover(px, last[0], one) * _cover(py, last[1], one) * _cover(pz, last[2], one)
                gx, fx = gx * cover, fx * cover
            b = _index(x, y, z, ny, nz)
            for a in range(len(out)):
                low = gy * (gz * v[b] + fz * v[b + sz]) + fy * (gz * v[b + sy] + fz * v[b + sy + sz])
                d = b + sx
                high = gy * (gz * v[d] + fz * v[d + sz]) + fy * (gz * v[d + sy] + fz * v[d + sy + sz])
                out[a, k, j] = gx * low + fx * high
                b += n
    return bad


@compiled(inline="always")
def _corners(v, n, grad, k, j, b, sx, sy, sz, zero):  # type: ignore[no-untyped-def]
    """Sum over channels, of n values each, of the gradient at a point times the values at the eight corners of the cell at ``b``."""
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = zero
    for a in range(len(grad)):
        g, d = grad[a, k, j], b + sx
        a0 += g * v[b]
        a1 += g * v[b + sz]
        a2 += g * v[b + sy]
        a3 += g * v[b + sy + sz]
        a4 += g * v[d]
        a5 += g * v[d + sz]
        a6 += g * v[d + sy]
        a7 += g * v[d + sy + sz]
        b += n
    return a0, a1, a2, a3, a4, a5, a6, a7


@compiled(parallel=True)
def _by_points(v, shape, points, scale, grad, out, value):  # type: ignore[no-untyped-def]
    """Gradient of sum(grad * values at points) with respect to the points (3, k, l); zero where a point is outside the grid.

    Unless ``value`` (k, l) is empty, the sum over channels of grad * values goes there. Returns the number of points that are not finite.
    At a voxel's center the slope jumps; the mean of both sides is taken, so that a search from the identity prefers no side.
    """
    nx, ny, nz = shape
    n = np.uint64(nx * ny * nz)
    sx, sy, sz = _strides(nx, ny, nz)
    one, rounding, last = _numbers(scale, nx, ny, nz)
    zero, half, bad = one - one, one / (one + one), 0
    for k in prange(points.shape[1]):
        for j in range(points.shape[2]):
            px, py, pz = points[0, k, j] * scale[0], points[1, k, j] * scale[1], points[2, k, j] * scale[2]
            if not np.isfinite(px + py + pz):
                bad += 1
            x, fx, in_x = _cell(px, last[0], one, rounding)
            y, fy, in_y = _cell(py, last[1], one, rounding)
            z, fz, in_z = _cell(pz, last[2], one, rounding)
            gx, gy, gz = one - fx, one - fy, one - fz
            b = _index(x, y, z, ny, nz)
            a0, a1, a2, a3, a4, a5, a6, a7 = _corners(v, n, grad, k, j, b, sx, sy, sz, zero)
            if value.size:
                low, high = gy * (gz * a0 + fz * a1) + fy * (gz * a2 + fz * a3), gy * (gz * a4 + fz * a5) + fy * (gz * a6 + fz * a7)
                value[k, j] = gx * low + fx * high
            dx = gy * (gz * (a4 - a0) + fz * (a5 - a1)) + fy * (gz * (a6 - a2) + fz * (a7 - a3))
            dy = gx * (gz * (a2 - a0) + fz * (a3 - a1)) + fx * (gz * (a6 - a4) + fz * (a7 - a5))
            dz = gx * (gy * (a1 - a0) + fy * (a3 - a2)) + fx * (gy * (a5 - a4) + fy * (a7 - a6))
            if fx == zero and in_x:
                b0, b1, b2, b3, _, _, _, _ = _corners(v, n, grad, k, j, b - sx, sx, sy, sz, zero)
                dx = half * (dx + gy * (gz * (a0 - b0) + fz * (a1 - b1)) + fy * (gz * (a2 - b2) + fz * (a3 - b3)))
            if fy == zero and in_y:
                b0, b1, _, _, b4, b5, _, _ = _corners(v, n, grad, k, j, b - sy, sx, sy, sz, zero)
                dy = half * (dy + gx * (gz * (a0 - b0) + fz * (a1 - b1)) + fx * (gz * (a4 - b4) + fz * (a5 - b5)))
            if fz == zero and in_z:
                b0, _, b2, _, b4, _, b6, _ = _corners(v, n, grad, k, j, b - sz, sx, sy, sz, zero)
                dz = half * (dz + gx * (gy * (a0 - b0) + fy * (a2 - b2)) + fx * (gy * (a4 - b4) + fy * (a6 - b6)))
            out[0, k, j] = dx * scale[0] if in_x else zero
            out[1, k, j] = dy * scale[1] if in_y else zero
            out[2, k, j] = dz * scale[2] if in_z else zero
    return bad


@compiled(parallel=True)
def _cell_range(points, scale, n, low, high):  # type: ignore[no-untyped-def]
    """For each row k of points, the first and the last cell along x that contains one."""
    one, rounding, last = _numbers(scale, n, 1, 1)
    for k in prange(points.shape[1]):
        a, b = n, -1
        for j in range(points.shape[2]):
            x, _, _ = _cell(points[0, k, j] * scale[0], last[0], one, rounding)
            a, b = min(a, int(x)), max(b, int(x))
        low[k], high[k] = a, b


@compiled(parallel=True)
def _by_values(shape, points, scale, grad, low, high, o, slabs):  # type: ignore[no-untyped-def]
    """Gradient with respect to the values: scatter grad (c, k, l) into o (c, *shape), flat.

    Each voxel adds its points in the order of the points, whatever the number of slabs.
    """
    nx, ny, nz = shape
    n = np.uint64(nx * ny * nz)
    sx, sy, sz = _strides(nx, ny, nz)
    one, rounding, last = _numbers(scale, nx, ny, nz)
    for s in prange(slabs):
        first, end = s * nx // slabs, (s + 1) * nx // slabs
        for k in range(points.shape[1]):
            if high[k] < first - 1 or low[k] >= end:
                continue
            for j in range(points.shape[2]):
                ux, fx, _ = _cell(points[0, k, j] * scale[0], last[0], one, rounding)
                x = int(ux)
                if x < first - 1 or x >= end:
                    continue
                y, fy, _ = _cell(points[1, k, j] * scale[1], last[1], one, rounding)
                z, fz, _ = _cell(points[2, k, j] * scale[2], last[2], one, rounding)
                gy, gz = one - fy, one - fz
                for i in range(2):
                    if first <= x + i < end:
                        b, wx = _index(ux, y, z, ny, nz) + (sx if i else np.uint64(0)), fx if i else one - fx
                        for a in range(len(grad)):
                            g = wx * grad[a, k, j]
                            o[b] += g * gy * gz
                            o[b + sz] += g * gy * fz
                            o[b + sy] += g * fy * gz
                            o[b + sy + sz] += g * fy * fz
                            b += n


def as_volume(x: np.ndarray) -> np.ndarray:
    """Reshape 2D data (..., x, y) to a volume (..., x, 1, y)."""
    return np.expand_dims(x, -2)


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(values, points)
        ctx.spacing = spacing
        return _values_at(values, points, spacing, covered=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, points = ctx.saved_tensors
        by_values = torch.zeros_like(values, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        by_points = torch.zeros_like(points, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else None
        for i, (v, p, g) in enumerate(items(values, points, grad.contiguous(), grad.shape[0])):
            scale = inverse_spacing(ctx.spacing, v.dtype)
            if by_points is not None:
                part = np.empty_like(p)
                _by_points(v.reshape(-1), v.shape[1:], p, scale, g, part, np.empty((0, 0), p.dtype))
                axes = part if len(ctx.spacing) == 3 else part[::2]
                by_points[i % points.shape[0]] += torch.from_numpy(axes).view(points.shape[1:])
            if by_values is not None:
                low, high = np.empty(p.shape[1], np.int64), np.empty(p.shape[1], np.int64)
                _cell_range(p, scale, v.shape[1], low, high)
                target = by_values[i % values.shape[0]].view(-1).numpy()
                _by_values(v.shape[1:], p, scale, g, low, high, target, get_num_threads())
        return by_values, by_points, None


class _SampleOne(torch.autograd.Function):
    """One channel of constant values: the slopes by the points are computed with the values, and kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
        out = torch.empty(size_of_batch(values, points), 1, *points.shape[2:], dtype=values.dtype)
        slopes = torch.empty(len(out), len(spacing), *points.shape[2:], dtype=values.dtype)
        for i, (v, p, o) in enumerate(items(values, points, out, len(out))):
            slope = np.empty_like(p) if len(spacing) == 2 else slopes[i].view(p.shape).numpy()
            require_finite(_by_points(v.reshape(-1), v.shape[1:], p, inverse_spacing(spacing, v.dtype), np.ones_like(o), slope, o[0]), i)
            if len(spacing) == 2:
                slopes[i] = torch.from_numpy(slope[::2]).view(slopes.shape[1:])
        ctx.slopes, ctx.batch = slopes, points.shape[0]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        by_points = ctx.slopes * grad
        return None, by_points if ctx.batch == len(by_points) else by_points.sum(0, keepdim=True), None


def require_finite(bad: int, item: int) -> None:
    """Raise DivergenceError if points of an item of the batch are not finite."""
    if bad:
        raise DivergenceError(f"a map is not finite (image {item} of the batch): the trajectory diverged")


def size_of_batch(values: Tensor, points: Tensor) -> int:
    """The size of the batch. Raises ValueError where one of ``values`` and ``points`` has neither 1 item nor as many as the other."""
    sizes = {len(values), len(points)}
    if len(sizes - {1}) > 1:
        raise ValueError(f"a batch of {len(values)} images at the points of {len(points)}; one must be 1, or both the same")
    return max(sizes)


def _values_at(values: Tensor, points: Tensor, spacing: tuple[float, ...], *, covered: bool) -> Tensor:
    batch = size_of_batch(values, points)
    out = torch.empty(batch, values.shape[1], *points.shape[2:], dtype=values.dtype)
    for i, (v, p, o) in enumerate(items(values, points, out, batch)):
        require_finite(_forward(v.reshape(-1), v.shape[1:], p, inverse_spacing(spacing, v.dtype), covered, o), i)
    return out


def inverse_spacing(spacing: tuple[float, ...], dtype: np.dtype) -> np.ndarray:
    """1 / spacing along three axes; 2D data have spacing 1 along the middle one."""
    full = spacing if len(spacing) == 3 else (spacing[0], 1.0, spacing[1])
    return np.array([1 / h for h in full], dtype=dtype)


def items(values: Tensor, points: Tensor, third: Tensor, batch: int) -> Any:
    """(values (c, x, y, z), points (3, k, l), third (c, k, l)) of each batch item, 2D as volumes with y = 0."""
    v, p = values.detach().contiguous().numpy(), points.detach().contiguous().numpy()
    rows = p.shape[2] if p.ndim > 3 else 1
    p = p.reshape(p.shape[0], p.shape[1], rows, p[0, 0].size // max(rows, 1))
    if p.shape[1] == 2:
        v, p = as_volume(v), np.stack([p[:, 0], np.zeros_like(p[:, 0]), p[:, 1]], 1)
    t = third.detach().numpy().reshape(batch, third.shape[1], *p.shape[2:])
    for i in range(batch):
        yield v[i % v.shape[0]], p[i % p.shape[0]], t[i]


def sample(values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Values (b, c, *s) at points (b, d, *t) in units of ``spacing``, linear, constant beyond the edges; (b, c, *t).

    Raises:
        DivergenceError: a point is not finite.
    """
    is_constant = values.shape[1] == 1 and not values.requires_grad and points.requires_grad
    return (_SampleOne if is_constant else _Sample).apply(values, points.to(values.dtype), spacing)


def sample_covered(values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """As ``sample``, but 0 beyond the edges, to which the values fall within a voxel, and without gradients."""
    return _values_at(values.detach(), points.detach().to(values.dtype), spacing, covered=True)
