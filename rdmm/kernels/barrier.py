"""The barrier against folds and its gradient on CPU, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange

from rdmm.kernels.compiled import compiled
from rdmm.kernels.sampling import as_volume, inverse_spacing
from rdmm.types import Tensor

GENTLE, GENTLE_MIDDLE = 0.2, 0.078
"""Edges that differ by at most e from the undeformed ones, in each entry, have corner determinants of at least
(1 - e)^3 - 3 (1 + e) e^2 - 2 e^3 = 0.35 at 0.2, and, with 3 e in place of e, middle ones of 0.2 at 0.078: no ``floor`` is above that."""


@compiled(inline="always")
def _edge(u, scale, axis, x, y, z, step):  # type: ignore[no-untyped-def]
    """Edge of the deformed cell from a corner along an axis, divided by its undeformed length, in the direction of the axis."""
    xx, yy, zz = x + (step if axis == 0 else 0), y + (step if axis == 1 else 0), z + (step if axis == 2 else 0)
    a = (u[0, xx, yy, zz] - u[0, x, y, z]) * step * scale[0] + (1.0 if axis == 0 else 0.0)
    b = (u[1, xx, yy, zz] - u[1, x, y, z]) * step * scale[1] + (1.0 if axis == 1 else 0.0)
    c = (u[2, xx, yy, zz] - u[2, x, y, z]) * step * scale[2] + (1.0 if axis == 2 else 0.0)
    return a, b, c


@compiled(inline="always")
def _edges(u, scale, x, y, z, i, j, k, flat):  # type: ignore[no-untyped-def]
    """The three edges at corner (i, j, k) of cell (x, y, z); in 2D the second one is not deformed."""
    cx, cy, cz = x + i, y + j, z + k
    e = _edge(u, scale, 0, cx, cy, cz, 1 - 2 * i)
    f = (0.0 * e[0], 1.0 + 0.0 * e[0], 0.0 * e[0]) if flat else _edge(u, scale, 1, cx, cy, cz, 1 - 2 * j)
    g = _edge(u, scale, 2, cx, cy, cz, 1 - 2 * k)
    return e, f, g


@compiled(inline="always")
def _cross(a, b):  # type: ignore[no-untyped-def]
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@compiled(inline="always")
def _largest_deviation(u, scale, x, y, z, flat):  # type: ignore[no-untyped-def]
    """Largest entry of the differences between the edges of a deformed cell and those of the undeformed one."""
    largest = 0.0 * u[0, x, y, z]
    for axis in range(3):
        if flat and axis == 1:
            continue
        for i in range(1 if axis == 0 else 2):
            for j in range(1 if axis == 1 or flat else 2):
                for k in range(1 if axis == 2 else 2):
                    cx, cy, cz = x + i, y + j, z + k
                    xx, yy, zz = cx + (1 if axis == 0 else 0), cy + (1 if axis == 1 else 0), cz + (1 if axis == 2 else 0)
                    for a in range(3):
                        largest = max(largest, abs(u[a, xx, yy, zz] - u[a, cx, cy, cz]) * scale[a])
    return largest


@compiled(inline="always")
def _between(u, scale, x, y, z, a, b):  # type: ignore[no-untyped-def]
    """Vector from vertex a to vertex b of the deformed cell, in units of the undeformed edges; a and b are bits (x, y, z)."""
    ax, ay, az = x + (a >> 2), y + ((a >> 1) & 1), z + (a & 1)
    bx, by, bz = x + (b >> 2), y + ((b >> 1) & 1), z + (b & 1)
    e = (u[0, bx, by, bz] - u[0, ax, ay, az]) * scale[0] + (bx - ax)
    f = (u[1, bx, by, bz] - u[1, ax, ay, az]) * scale[1] + (by - ay)
    g = (u[2, bx, by, bz] - u[2, ax, ay, az]) * scale[2] + (bz - az)
    return e, f, g


@compiled(inline="always")
def _middle(u, scale, x, y, z, parity):  # type: ignore[no-untyped-def]
    """Edges of a middle tetrahedron of the cell, of the vertices of one parity, from the first of them (0 or 1)."""
    p = _between(u, scale, x, y, z, parity, 2 if parity else 3)
    q = _between(u, scale, x, y, z, parity, 4 if parity else 5)
    r = _between(u, scale, x, y, z, parity, 7 if parity else 6)
    return p, q, r


@compiled(inline="always")
def _dot(a, b):  # type: ignore[no-untyped-def]
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled()
def _cell_value(u, scale, floor, x, y, z, flat):  # type: ignore[no-untyped-def]
    """Sum of (floor - det)_+^2 over the simplices of a cell. One that is bent less than GENTLE cannot fall below the floor."""
    total = 0.0
    bent = _largest_deviation(u, scale, x, y, z, flat)
    if bent > GENTLE:
        for i in range(2):
            for j in range(1 if flat else 2):
                for k in range(2):
                    e, f, g = _edges(u, scale, x, y, z, i, j, k, flat)
                    short = floor - _dot(e, _cross(f, g))
                    if short > 0:
                        total += short * short
    if bent > GENTLE_MIDDLE and not flat:
        for parity in range(2):
            p, q, r = _middle(u, scale, x, y, z, parity)
            short = floor - (0.5 - parity) * _dot(p, _cross(q, r))
            if short > 0:
                total += short * short
    return total


@compiled(parallel=True)
def _barrier_value(u, scale, floor, sums):  # type: ignore[no-untyped-def]
    """Sums of (floor - det)_+^2 over each layer of cells."""
    _, nx, ny, nz = u.shape
    flat = ny == 1
    for x in prange(nx - 1):
        total = 0.0
        for y in range(1 if flat else ny - 1):
            for z in range(nz - 1):
                total += _cell_value(u, scale, floor, x, y, z, flat)
        sums[x] = total


@compiled()
def _add_corner(u, scale, floor, x, y, z, i, j, k, flat, out):  # type: ignore[no-untyped-def]
    """Add the gradient of the corner (i, j, k) of a cell to ``out``."""
    e, f, g = _edges(u, scale, x, y, z, i, j, k, flat)
    n = _cross(f, g)
    short = floor - _dot(e, n)
    if short <= 0:
        return
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


@compiled()
def _add_middle(u, scale, floor, x, y, z, parity, out):  # type: ignore[no-untyped-def]
    """Add the gradient of a middle tetrahedron of a cell to ``out``."""
    p, q, r = _middle(u, scale, x, y, z, parity)
    sign = 0.5 - parity
    n, m, o = _cross(q, r), _cross(r, p), _cross(p, q)
    short = floor - sign * _dot(p, n)
    if short <= 0:
        return
    for a in range(3):
        w = -2 * short * sign * scale[a]
        for vertex, s in ((2 if parity else 3, w * n[a]), (4 if parity else 5, w * m[a]), (7 if parity else 6, w * o[a])):
            out[a, x + (vertex >> 2), y + ((vertex >> 1) & 1), z + (vertex & 1)] += s
            out[a, x, y, z + parity] -= s


@compiled()
def _barrier_gradient(u, scale, floor, sums, out):  # type: ignore[no-untyped-def]
    """Add the gradient of the sum of ``sums`` to ``out``. It runs on one thread, since few layers have folds."""
    _, nx, ny, nz = u.shape
    flat = ny == 1
    for x in range(nx - 1):
        if sums[x] == 0:
            continue
        for y in range(1 if flat else ny - 1):
            for z in range(nz - 1):
                bent = _largest_deviation(u, scale, x, y, z, flat)
                if bent > GENTLE:
                    for i in range(2):
                        for j in range(1 if flat else 2):
                            for k in range(2):
                                _add_corner(u, scale, floor, x, y, z, i, j, k, flat, out)
                if bent > GENTLE_MIDDLE and not flat:
                    for parity in range(2):
                        _add_middle(u, scale, floor, x, y, z, parity, out)


class _Barrier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, spacing: tuple[float, ...], floor: float) -> Tensor:
        fields = u.detach().contiguous().numpy()
        if len(spacing) == 2:
            fields = as_volume(np.stack([fields[:, 0], np.zeros_like(fields[:, 0]), fields[:, 1]], 1))
        scale, count = inverse_spacing(spacing, fields.dtype), (10 if len(spacing) == 3 else 4) * np.prod([n - 1 for n in u.shape[2:]])
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
    """(b,) mean over cells and their simplices of (floor - det)_+^2 for phi = id + u, u (b, d, *s) in units of ``spacing``."""
    return _Barrier.apply(u, spacing, floor)
