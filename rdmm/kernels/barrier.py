"""The barrier against folds and its gradient on CPU, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from rdmm.kernels.compiled import compiled
from rdmm.kernels.sampling import as_volume, inverse_spacing
from rdmm.types import Tensor

SIMPLICES = np.array([[v, v ^ 4, v ^ 2, v ^ 1] for v in (0, 1, 4, 5, 2, 3, 6, 7)] + [[0, 3, 5, 6], [1, 2, 4, 7]])
"""Vertices of the simplices of a cell, each a number of bits (x, y, z): those at its corners, of which 2D has the first four, and the two
in its middle."""

INVERSE_VOLUMES = np.array([1.0, -1, -1, 1, -1, 1, 1, -1, 0.5, -0.5])
"""1 / the determinant of the edges of each simplex in the undeformed unit cell."""


@compiled(inline="always")
def _minus(a, b):  # type: ignore[no-untyped-def]
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@compiled(inline="always")
def _cross(a, b):  # type: ignore[no-untyped-def]
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@compiled(inline="always")
def _dot(a, b):  # type: ignore[no-untyped-def]
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled(inline="always")
def _row(u, x, y):  # type: ignore[no-untyped-def]
    """The components of the displacements of a row of voxels: three arrays without gaps, for the sake of vector instructions."""
    return u[0, x, y], u[1, x, y], u[2, x, y]


@compiled(inline="always")
def _vertex(row, z, scale, i, j, k):  # type: ignore[no-untyped-def]
    """Vertex (i, j, k) of a deformed cell, in units of the undeformed edges, from the displacements of its row."""
    return row[0][z] * scale[0] + i, row[1][z] * scale[1] + j, row[2][z] * scale[2] + k


@compiled(inline="always")
def _squeezed(floor, volume):  # type: ignore[no-untyped-def]
    """(floor - volume)_+^2."""
    short = max(floor - volume, floor - floor)
    return short * short


@compiled()
def _row_values(u, scale, floor, one, x, y, flat, out):  # type: ignore[no-untyped-def]
    """Sum of (floor - det)_+^2 over the simplices of each cell of the row (x, y), to ``out`` (nz - 1,).

    The loop has no branch that depends on the map, and one type of number, so that the compiler makes vector instructions of it.
    """
    o, half, next_y = one - one, one / (one + one), y if flat else y + 1
    r00, r01, r10, r11 = _row(u, x, y), _row(u, x, next_y), _row(u, x + 1, y), _row(u, x + 1, next_y)
    for z in range(out.shape[0]):
        a, b = _vertex(r00, z, scale, o, o, o), _vertex(r00, z + 1, scale, o, o, one)
        c, d = _vertex(r01, z, scale, o, one, o), _vertex(r01, z + 1, scale, o, one, one)
        e, f = _vertex(r10, z, scale, one, o, o), _vertex(r10, z + 1, scale, one, o, one)
        g, h = _vertex(r11, z, scale, one, one, o), _vertex(r11, z + 1, scale, one, one, one)
        ae, bf, cg, dh = _minus(e, a), _minus(f, b), _minus(g, c), _minus(h, d)
        ac, bd, eg, fh = _minus(c, a), _minus(d, b), _minus(g, e), _minus(h, f)
        ab, cd, ef, gh = _minus(b, a), _minus(d, c), _minus(f, e), _minus(h, g)
        total = _squeezed(floor, _dot(ae, _cross(ac, ab))) + _squeezed(floor, _dot(bf, _cross(bd, ab)))
        total += _squeezed(floor, _dot(ae, _cross(eg, ef))) + _squeezed(floor, _dot(bf, _cross(fh, ef)))
        if not flat:
            total += _squeezed(floor, _dot(cg, _cross(ac, cd))) + _squeezed(floor, _dot(dh, _cross(bd, cd)))
            total += _squeezed(floor, _dot(cg, _cross(eg, gh))) + _squeezed(floor, _dot(dh, _cross(fh, gh)))
            total += _squeezed(floor, half * _dot(_minus(d, a), _cross(_minus(f, a), _minus(g, a))))
            total += _squeezed(floor, half * _dot(_minus(b, c), _cross(_minus(e, b), _minus(h, b))))
        out[z] = total


@compiled(parallel=True)
def _barrier_value(u, scale, floor, one, sums):  # type: ignore[no-untyped-def]
    """Sums of (floor - det)_+^2 over each row of cells."""
    _, nx, ny, nz = u.shape
    for x in prange(nx - 1):
        row = np.empty(nz - 1, u.dtype)
        for y in range(sums.shape[1]):
            _row_values(u, scale, floor, one, x, y, ny == 1, row)
            total = 0.0
            for z in range(nz - 1):
                total += row[z]
            sums[x, y] = total


@compiled(inline="always")
def _at(u, scale, x, y, z, flat, vertex):  # type: ignore[no-untyped-def]
    """A vertex, given by its bits, of the deformed cell (x, y, z), in units of the undeformed edges."""
    i, j, k = vertex >> 2, (vertex >> 1) & 1, vertex & 1
    return _vertex(_row(u, x + i, y if flat else y + j), z + k, scale, i, j, k)


@compiled()
def _add_gradient(u, scale, floor, x, y, z, flat, out):  # type: ignore[no-untyped-def]
    """Add the gradient of the sum of a cell to ``out``."""
    for n in range(4 if flat else 10):
        origin, inverse = SIMPLICES[n, 0], INVERSE_VOLUMES[n]
        a = _at(u, scale, x, y, z, flat, origin)
        p = _minus(_at(u, scale, x, y, z, flat, SIMPLICES[n, 1]), a)
        q = _minus(_at(u, scale, x, y, z, flat, SIMPLICES[n, 2]), a)
        r = _minus(_at(u, scale, x, y, z, flat, SIMPLICES[n, 3]), a)
        normals = _cross(q, r), _cross(r, p), _cross(p, q)
        short = floor - inverse * _dot(p, normals[0])
        if short <= 0:
            continue
        for m in range(3):
            for vertex, sign in ((SIMPLICES[n, m + 1], 1), (origin, -1)):
                row = y if flat else y + ((vertex >> 1) & 1)
                for i in range(3):
                    out[i, x + (vertex >> 2), row, z + (vertex & 1)] -= sign * 2 * short * inverse * scale[i] * normals[m][i]


@compiled()
def _barrier_gradient(u, scale, floor, one, sums, out):  # type: ignore[no-untyped-def]
    """Add the gradient of the sum of ``sums`` to ``out``. It runs on one thread, since few rows have squeezed cells."""
    _, nx, ny, nz = u.shape
    flat = ny == 1
    row = np.empty(nz - 1, u.dtype)
    for x in range(nx - 1):
        for y in range(sums.shape[1]):
            if sums[x, y] > 0:
                _row_values(u, scale, floor, one, x, y, flat, row)
                for z in range(nz - 1):
                    if row[z] > 0:
                        _add_gradient(u, scale, floor, x, y, z, flat, out)


class _Barrier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, spacing: tuple[float, ...], floor: float) -> Tensor:
        fields = u.detach().contiguous().numpy()
        if len(spacing) == 2:
            fields = as_volume(np.stack([fields[:, 0], np.zeros_like(fields[:, 0]), fields[:, 1]], 1))
        scale, count = inverse_spacing(spacing, fields.dtype), (10 if len(spacing) == 3 else 4) * np.prod([n - 1 for n in u.shape[2:]])
        out, gradient = np.zeros(len(fields)), np.zeros_like(fields)
        for b, field in enumerate(fields):
            sums, (least, one) = np.empty((field.shape[1] - 1, max(field.shape[2] - 1, 1))), np.array([floor, 1], field.dtype)
            _barrier_value(field, scale, least, one, sums)
            out[b] = sums.sum() / count
            if ctx.needs_input_grad[0] and out[b] > 0:
                _barrier_gradient(field, scale, least, one, sums, gradient[b])
        gradient = gradient[:, ::2, :, 0] if len(spacing) == 2 else gradient
        ctx.save_for_backward(torch.from_numpy(np.ascontiguousarray(gradient)))
        ctx.count = float(count)
        return torch.from_numpy(out).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (g / ctx.count).view(-1, *(1,) * (gradient.ndim - 1)), None, None


def barrier(u: Tensor, spacing: tuple[float, ...], floor: float) -> Tensor:
    """(b,) mean over cells and their simplices of (floor - det)_+^2 for phi = id + u, u (b, d, *s) in units of ``spacing``."""
    return _Barrier.apply(u, spacing, floor)
