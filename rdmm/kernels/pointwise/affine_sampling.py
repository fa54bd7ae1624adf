"""An image at the voxels of a grid that an affine map moves, compiled by numba, with the gradient by the matrix.

The points of the grid are not stored. One pass computes values, weights and slopes; the gradient is a sum of slopes times voxel indices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from rdmm.kernels.compiled import compiled
from rdmm.types import DivergenceError, Tensor


@compiled(inline="always")
def _cell(p, n):  # type: ignore[no-untyped-def]
    """Lower corner, fraction, and the voxel before it for a slope of both sides, as in ``kernels.sampling``; then how much of p is covered.

    The voxel before is the corner itself unless p is a voxel's center inside the grid. Covered is 1 in the grid, and falls to 0 within a
    voxel outside.
    """
    covered = max(0.0, min(1.0, min(p + 1, n - p)))
    p = min(max(p, 0.0), n - 1.0)
    nearest = np.floor(p + 0.5)
    if abs(p - nearest) < 1e-5:
        p = nearest
    i, inside = min(int(p), max(n - 2, 0)), p > 0 and p < n - 1
    return i, p - i, inside, i - 1 if inside and p == i else i, covered


@compiled(inline="always")
def _plane(v, i, j, k, sj, sk, fj, fk, axis):  # type: ignore[no-untyped-def]
    """The interpolated value in the plane i across an axis, at (j + fj, k + fk) of the other two; sj, sk: 1, or 0 along one voxel."""
    gj, gk = 1 - fj, 1 - fk
    if axis == 0:
        return gj * (gk * v[i, j, k] + fk * v[i, j, k + sk]) + fj * (gk * v[i, j + sj, k] + fk * v[i, j + sj, k + sk])
    if axis == 1:
        return gj * (gk * v[j, i, k] + fk * v[j, i, k + sk]) + fj * (gk * v[j + sj, i, k] + fk * v[j + sj, i, k + sk])
    return gj * (gk * v[j, k, i] + fk * v[j, k + sk, i]) + fj * (gk * v[j + sj, k, i] + fk * v[j + sj, k + sk, i])


@compiled(parallel=True)
def _move(values, mask, m, out, weight, slope):  # type: ignore[no-untyped-def]
    """Values (c, *s) and mask (k, *s) at m (3, 4) times the indices of the voxels *t: out (c, *t), weight (k, *t), slope (c, 3, *t).

    An empty mask is 1 everywhere; an empty slope is not computed.
    """
    _, nx, ny, nz = values.shape
    sy, sz = min(1, ny - 1), min(1, nz - 1)
    for ix in prange(out.shape[1]):
        for iy in range(out.shape[2]):
            px = m[0, 0] * ix + m[0, 1] * iy + m[0, 3]
            py = m[1, 0] * ix + m[1, 1] * iy + m[1, 3]
            pz = m[2, 0] * ix + m[2, 1] * iy + m[2, 3]
            for iz in range(out.shape[3]):
                x, fx, in_x, left, wx = _cell(px + m[0, 2] * iz, nx)
                y, fy, in_y, front, wy = _cell(py + m[1, 2] * iz, ny)
                z, fz, in_z, below, wz = _cell(pz + m[2, 2] * iz, nz)
                gx, gy, gz = 1 - fx, 1 - fy, 1 - fz
                for k in range(len(weight)):
                    low = high = 1.0
                    if mask.size:
                        low = _plane(mask[k], x, y, z, sy, sz, fy, fz, 0)
                        high = _plane(mask[k], x + 1, y, z, sy, sz, fy, fz, 0)
                    weight[k, ix, iy, iz] = wx * wy * wz * (gx * low + fx * high)
                for c in range(len(values)):
                    v = values[c]
                    v000, v001, v010, v011 = v[x, y, z], v[x, y, z + sz], v[x, y + sy, z], v[x, y + sy, z + sz]
                    v100, v101, v110, v111 = v[x + 1, y, z], v[x + 1, y, z + sz], v[x + 1, y + sy, z], v[x + 1, y + sy, z + sz]
                    low = gy * (gz * v000 + fz * v001) + fy * (gz * v010 + fz * v011)
                    high = gy * (gz * v100 + fz * v101) + fy * (gz * v110 + fz * v111)
                    value = gx * low + fx * high
                    out[c, ix, iy, iz] = value
                    if slope.size:
                        dx = high - low
                        dy = gz * (gx * (v010 - v000) + fx * (v110 - v100)) + fz * (gx * (v011 - v001) + fx * (v111 - v101))
                        dz = gy * (gx * (v001 - v000) + fx * (v101 - v100)) + fy * (gx * (v011 - v010) + fx * (v111 - v110))
                        if left != x:
                            dx = 0.5 * (dx + value - _plane(v, left, y, z, sy, sz, fy, fz, 0))
                        if front != y:
                            dy = 0.5 * (dy + value - _plane(v, front, x, z, 1, sz, fx, fz, 1))
                        if below != z:
                            dz = 0.5 * (dz + value - _plane(v, below, x, y, 1, sy, fx, fy, 2))
                        slope[c, 0, ix, iy, iz] = dx if in_x else 0.0
                        slope[c, 1, ix, iy, iz] = dy if in_y else 0.0
                        slope[c, 2, ix, iy, iz] = dz if in_z else 0.0


@compiled(parallel=True)
def _by_matrix(slope, gradient, out):  # type: ignore[no-untyped-def]
    """Each layer's part (layers, 3, 4) of the gradient by the matrix, of slope (c, 3, *t) and the gradient (c, *t) by the values."""
    for ix in prange(slope.shape[2]):
        for c in range(len(slope)):
            for axis in range(3):
                for iy in range(slope.shape[3]):
                    s = t = 0.0
                    for iz in range(slope.shape[4]):
                        g = np.float64(slope[c, axis, ix, iy, iz] * gradient[c, ix, iy, iz])
                        s += g
                        t += g * iz
                    out[ix, axis, 0] += s * ix
                    out[ix, axis, 1] += s * iy
                    out[ix, axis, 2] += t
                    out[ix, axis, 3] += s


SOLID = {2: np.ix_((0, 2), (0, 2, 3)), 3: np.ix_((0, 1, 2), (0, 1, 2, 3))}
"""Where the rows and columns of a matrix in d dimensions are in that of a volume; a plane has one voxel along the middle axis."""


def _as_volume(x: Tensor, d: int) -> np.ndarray:
    return (x if d == 3 else x.unsqueeze(-2)).detach().contiguous().numpy()


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor | None, matrix: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        d = len(shape)
        solid = shape if d == 3 else (shape[0], 1, shape[1])
        m = np.zeros((3, 4))
        m[SOLID[d]] = matrix.detach().numpy()[:d]
        if not np.isfinite(m).all():
            raise DivergenceError("an affine map is not finite: the search diverged")
        images = _as_volume(values, d)
        masks = (
            np.empty((len(images), 0, 0, 0, 0), images.dtype)
            if mask is None
            else _as_volume(mask.to(values.dtype).expand(len(values), *mask.shape[1:]), d)
        )
        out = np.empty((*images.shape[:2], *solid), images.dtype)
        weight = np.empty((len(images), max(1, masks.shape[1]), *solid), images.dtype)
        slope = np.empty((*images.shape[:2], 3, *solid) if ctx.needs_input_grad[2] else (len(images), 0, 0, 0, 0, 0), images.dtype)
        for item in zip(images, masks, out, weight, slope, strict=True):
            _move(*item[:2], m, *item[2:])
        ctx.slope, ctx.d = slope, d
        moved, covered = (torch.from_numpy(x).view(*x.shape[:2], *shape) for x in (out, weight))
        ctx.mark_non_differentiable(covered)
        return moved, covered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[None, None, Tensor, None]:
        total = np.zeros((3, 4))
        for slope, g in zip(ctx.slope, _as_volume(gradient, ctx.d), strict=True):
            parts = np.zeros((slope.shape[2], 3, 4))
            _by_matrix(slope, g, parts)
            total += parts.sum(0)
        by_matrix = torch.zeros(ctx.d + 1, ctx.d + 1, dtype=torch.float64)
        by_matrix[:-1] = torch.from_numpy(total[SOLID[ctx.d]])
        return None, None, by_matrix, None


def sample_affinely(values: Tensor, mask: Tensor | None, matrix: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """An image and its mask at the voxels of another grid, linear; constant beyond the edges, the mask 0 there.

    Args:
        values, mask: (b, c, *s) and (b, k, *s), constants for the gradient; the mask None: 1 everywhere.
        matrix: (d+1, d+1), float64, from voxel indices of the grid to those of the image.
        shape: of the grid.

    Returns:
        values (b, c, *shape) and mask (b, k or 1, *shape), which is constant for the gradient.

    Raises:
        DivergenceError: the matrix is not finite.
    """
    return _Sample.apply(values, mask, matrix, shape)
