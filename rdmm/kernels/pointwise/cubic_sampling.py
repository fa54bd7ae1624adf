"""Cubic sampling on CPU, compiled by numba: values, and both gradients, with sums whose order is independent of the number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import get_num_threads, prange
from torch.autograd.function import once_differentiable

from rdmm.kernels.compiled import compiled
from rdmm.kernels.sampling import inverse_spacing, items, require_finite, size_of_batch
from rdmm.types import Tensor

NEXT, TWO, THREE = np.uint64(1), np.uint64(2), np.uint64(3)


@compiled(inline="always")
def _place(p, n, one):  # type: ignore[no-untyped-def]
    """Lower voxel and fraction of a coordinate in voxels, clamped to the grid (NaN to 0), and whether it is strictly inside."""
    zero, last = one - one, one * (n - 1)
    p = min(max(p, zero), last) if p == p else zero
    low = max(min(np.floor(p), last - one), zero)
    return np.uint64(low), p - low, p > zero and p < last


@compiled(inline="always")
def _strides(shape):  # type: ignore[no-untyped-def]
    """Sizes in memory of a channel, of a plane and of a row of values with padded walls. Unsigned: numba looks for negative places else."""
    row = np.uint64(shape[2] + 2)
    plane = row * np.uint64(shape[1] + 2 if shape[1] > 1 else 1)
    return np.uint64(shape[0] + 2) * plane, plane, row


@compiled(inline="always")
def _weights(b, one):  # type: ignore[no-untyped-def]
    """Weights of the voxels low - 1 to low + 2 at the fraction b: a and b of linear interpolation, and Everett's share of the second
    differences at the two in the middle."""
    a, two, six = one - b, one + one, one * 6
    ca, cb = (a * a * a - a) / six, (b * b * b - b) / six
    return ca, a - two * ca + cb, b + ca - two * cb, cb


@compiled(inline="always")
def _slopes(b, one):  # type: ignore[no-untyped-def]
    """Derivatives of ``_weights`` by b."""
    a, two, three, six = one - b, one + one, one * 3, one * 6
    da, db = (one - three * a * a) / six, (three * b * b - one) / six
    return da, -one - two * da + db, one + da - two * db, db


@compiled(inline="always")
def _line(v, r, w):  # type: ignore[no-untyped-def]
    """Weighted sum of four voxels along the last axis."""
    return w[0] * v[r] + w[1] * v[r + NEXT] + w[2] * v[r + TWO] + w[3] * v[r + THREE]


@compiled(parallel=True)
def _forward(v, shape, points, scale, out):  # type: ignore[no-untyped-def]
    """Write values, flat and with ``_padded`` walls, at points (3, k, l) * scale to out (c, k, l); the number of points not finite."""
    nx, ny, nz = shape
    (n, sx, sy), flat = _strides(shape), ny == 1
    one, bad = scale.dtype.type(1), 0
    for k in prange(points.shape[1]):
        for j in range(points.shape[2]):
            px, py, pz = points[0, k, j] * scale[0], points[1, k, j] * scale[1], points[2, k, j] * scale[2]
            if not np.isfinite(px + py + pz):
                bad += 1
            x, fx, _ = _place(px, nx, one)
            y, fy, _ = _place(py, ny, one)
            z, fz, _ = _place(pz, nz, one)
            wx, wy, wz = _weights(fx, one), _weights(fy, one), _weights(fz, one)
            for c in range(len(out)):
                total, r = one - one, np.uint64(c) * n + x * sx + y * sy + z
                for i in range(4):
                    if flat:
                        total += wx[i] * _line(v, r, wz)
                    else:
                        plane = wy[0] * _line(v, r, wz) + wy[1] * _line(v, r + sy, wz)
                        plane += wy[2] * _line(v, r + TWO * sy, wz) + wy[3] * _line(v, r + THREE * sy, wz)
                        total += wx[i] * plane
                    r += sx
                out[c, k, j] = total
    return bad


@compiled(parallel=True)
def _by_points(v, shape, points, scale, g, out):  # type: ignore[no-untyped-def]
    """Gradient of sum(g * values at points) with respect to the points (3, k, l); zero where a point is outside the grid."""
    nx, ny, nz = shape
    (n, sx, sy), flat = _strides(shape), ny == 1
    one = scale.dtype.type(1)
    zero = one - one
    for k in prange(points.shape[1]):
        for j in range(points.shape[2]):
            x, fx, in_x = _place(points[0, k, j] * scale[0], nx, one)
            y, fy, in_y = _place(points[1, k, j] * scale[1], ny, one)
            z, fz, in_z = _place(points[2, k, j] * scale[2], nz, one)
            wx, wy, wz = _weights(fx, one), _weights(fy, one), _weights(fz, one)
            dx, dy, dz = _slopes(fx, one), _slopes(fy, one), _slopes(fz, one)
            gx = gy = gz = zero
            start, lines = x * sx + y * sy + z, 1 if flat else 4
            for i in range(4):
                for h in range(lines):
                    a0 = a1 = a2 = a3 = zero
                    r = start + np.uint64(i) * sx + np.uint64(h) * sy
                    for c in range(len(g)):
                        gc = g[c, k, j]
                        a0 += gc * v[r]
                        a1 += gc * v[r + NEXT]
                        a2 += gc * v[r + TWO]
                        a3 += gc * v[r + THREE]
                        r += n
                    line = wz[0] * a0 + wz[1] * a1 + wz[2] * a2 + wz[3] * a3
                    wh, dh = (one, zero) if flat else (wy[h], dy[h])
                    gx += dx[i] * wh * line
                    gy += wx[i] * dh * line
                    gz += wx[i] * wh * (dz[0] * a0 + dz[1] * a1 + dz[2] * a2 + dz[3] * a3)
            out[0, k, j] = gx * scale[0] if in_x else zero
            out[1, k, j] = gy * scale[1] if in_y else zero
            out[2, k, j] = gz * scale[2] if in_z else zero


@compiled(parallel=True)
def _lower_rows(points, scale, n, low, high):  # type: ignore[no-untyped-def]
    """For each row k of points, the least and the greatest lower voxel along x."""
    one = scale.dtype.type(1)
    for k in prange(points.shape[1]):
        a, b = n, -1
        for j in range(points.shape[2]):
            x, _, _ = _place(points[0, k, j] * scale[0], n, one)
            a, b = min(a, int(x)), max(b, int(x))
        low[k], high[k] = a, b


@compiled(parallel=True)
def _by_values(shape, points, scale, g, low, high, out, slabs):  # type: ignore[no-untyped-def]
    """Gradient with respect to the values: scatter g (c, k, l) into out, flat and with ``_padded`` walls.

    Each voxel adds its points in the order of the points, whatever the number of slabs.
    """
    nx, ny, nz = shape
    (n, sx, sy), flat = _strides(shape), ny == 1
    one, lines = scale.dtype.type(1), 1 if flat else 4
    for s in prange(slabs):
        begin, stop = s * (nx + 2) // slabs, (s + 1) * (nx + 2) // slabs
        for k in range(points.shape[1]):
            if high[k] + 3 < begin or low[k] >= stop:
                continue
            for j in range(points.shape[2]):
                ux, fx, _ = _place(points[0, k, j] * scale[0], nx, one)
                x = np.int64(ux)
                if x + 3 < begin or x >= stop:
                    continue
                y, fy, _ = _place(points[1, k, j] * scale[1], ny, one)
                z, fz, _ = _place(points[2, k, j] * scale[2], nz, one)
                wx, wy, wz = _weights(fx, one), _weights(fy, one), _weights(fz, one)
                for i in range(4):
                    if begin <= x + i < stop:
                        for h in range(lines):
                            w = wx[i] if flat else wx[i] * wy[h]
                            r = (ux + np.uint64(i)) * sx + (y + np.uint64(h)) * sy + z
                            for c in range(len(g)):
                                gc = w * g[c, k, j]
                                out[r] += gc * wz[0]
                                out[r + NEXT] += gc * wz[1]
                                out[r + TWO] += gc * wz[2]
                                out[r + THREE] += gc * wz[3]
                                r += n


def _padded(v: np.ndarray) -> np.ndarray:
    """Values (c, x, y, z), flat, with one more voxel beyond each wall that makes the second difference at the wall 0.

    There is none along an axis of one voxel but the first and the last.
    """
    for axis in (1, 2, 3):
        n = v.shape[axis]
        if n == 1 and axis == 2:
            continue
        first, last = (v.take([i], axis) for i in (0, n - 1))
        second, second_last = (v.take([i], axis) for i in (min(1, n - 1), max(n - 2, 0)))
        v = np.concatenate([2 * first - second, v, 2 * last - second_last], axis)
    return v.reshape(-1)


def _folded(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The transpose of ``_padded``: (c, x, y, z) of flat g; shape is (c, x, y, z)."""
    c, nx, ny, nz = shape
    g = g.reshape(c, nx + 2, ny + 2 if ny > 1 else 1, nz + 2)
    for axis in (3, 2, 1):
        n = shape[axis]
        if n == 1 and axis == 2:
            continue
        low, inner, high = np.split(g, [1, n + 1], axis)
        inner = np.moveaxis(inner.copy(), axis, 0)
        low, high = np.moveaxis(low, axis, 0)[0], np.moveaxis(high, axis, 0)[0]
        inner[0] += 2 * low
        inner[min(1, n - 1)] -= low
        inner[n - 1] += 2 * high
        inner[max(n - 2, 0)] -= high
        g = np.moveaxis(inner, 0, axis)
    return g


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(values, points)
        ctx.spacing = spacing
        batch = size_of_batch(values, points)
        out = torch.empty(batch, values.shape[1], *points.shape[2:], dtype=values.dtype)
        for i, (v, p, o) in enumerate(items(values, points, out, batch)):
            require_finite(_forward(_padded(v), v.shape[1:], p, inverse_spacing(spacing, v.dtype), o), i)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, points = ctx.saved_tensors
        by_values = torch.zeros_like(values, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        by_points = torch.zeros_like(points, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else None
        for i, (v, p, g) in enumerate(items(values, points, grad.contiguous(), grad.shape[0])):
            scale, padded = inverse_spacing(ctx.spacing, v.dtype), _padded(v)
            if by_points is not None:
                part = np.empty_like(p)
                _by_points(padded, v.shape[1:], p, scale, g, part)
                axes = part if len(ctx.spacing) == 3 else part[::2]
                by_points[i % points.shape[0]] += torch.from_numpy(axes).view(points.shape[1:])
            if by_values is not None:
                low, high = np.empty(p.shape[1], np.int64), np.empty(p.shape[1], np.int64)
                _lower_rows(p, scale, v.shape[1], low, high)
                scattered = np.zeros_like(padded)
                _by_values(v.shape[1:], p, scale, g, low, high, scattered, get_num_threads())
                by_values[i % values.shape[0]] += torch.from_numpy(_folded(scattered, v.shape)).view(values.shape[1:])
        return by_values, by_points, None


def sample(values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Values (b, c, *s) at points (b, d, *t) in units of ``spacing``, cubic, constant beyond the edges; (b, c, *t).

    Raises:
        DivergenceError: a point is not finite.
    """
    return _Sample.apply(values, points.to(values.dtype), spacing)
