"""The fused CPU kernel of MIND-SSC, model (51): value and gradient in two sweeps along the first axis, in float32.

Up to its sign, I(x + s) - I(x + t) is a difference along one of 6 diagonals (2D: 2), and each diagonal serves two channels. So the first
sweep holds the patch means E_k of (I(q) - I(q + v_k))^2 for a few planes, and the channel of (s, t) is E_k at x + o. The derivatives by E_k
are summed up in one volume for each diagonal; the second sweep takes their sums H_k over the patches, and

    d value / d I(y) = sum_k 2 (I(y) - I(y + v_k)) H_k(y) - 2 (I(y - v_k) - I(y)) H_k(y - v_k)

Patches are summed directly, so there is no drift. The image is cut into slabs by its shape alone, so results do not depend on the number
of threads. A slab also writes to planes of the one before it: slabs with even numbers run first, then those with odd ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from rdmm.kernels.compiled import FAST, compiled
from rdmm.kernels.simd import LOG2E, exp2, f32, i32
from rdmm.types import Tensor

LARGE = np.float32(3e38)

Offset = tuple[int, ...]


@compiled(inline="always")
def _slabs(n: int, margin: int) -> int:
    """Number of slabs along an axis of n voxels: at most 16, an even number or one, each at least twice as long as the margin."""
    slabs = min(16, n // (2 * margin))
    return slabs - slabs % 2 if slabs > 1 else 1


@compiled(fastmath=FAST)
def _square_differences(plane, image, x, step):  # type: ignore[no-untyped-def]
    """(I(q) - I(q + step))^2 in plane x, where both voxels exist."""
    dx, dy, dz = step[0], step[1], step[2]
    ny, nz = plane.shape
    first, last = max(0, -dz), min(nz, nz - dz)
    for y in range(max(0, -dy), min(ny, ny - dy)):
        out, here, there = plane[y, first:last], image[x, y, first:last], image[x + dx, y + dy, first + dz : last + dz]
        for z in range(out.size):
            difference = here[z] - there[z]
            out[z] = difference * difference


@compiled(fastmath=FAST)
def _box(out, half, plane, ry, rz):  # type: ignore[no-untyped-def]
    """Sums of a plane over windows of 2 r + 1 voxels, cut at its edges."""
    ny, nz = plane.shape
    for y in range(ny):
        half[y, :] = f32(0)
        for j in range(-rz, rz + 1):
            to, of = half[y, max(0, -j) : min(nz, nz - j)], plane[y, max(0, j) : min(nz, nz + j)]
            for z in range(to.size):
                to[z] += of[z]
    for y in range(ny):
        to = out[y]
        to[:] = f32(0)
        for row in range(max(0, y - ry), min(ny, y + ry + 1)):
            of = half[row]
            for z in range(to.size):
                to[z] += of[z]


@compiled(fastmath=FAST)
def _sum_planes(out, planes, scale):  # type: ignore[no-untyped-def]
    """The sum of the planes times ``scale``."""
    for y in range(out.shape[0]):
        to = out[y]
        to[:] = f32(0)
        for j in range(planes.shape[0]):
            of = planes[j, y]
            for z in range(to.size):
                to[z] += of[z]
        for z in range(to.size):
            to[z] *= scale


@compiled(fastmath=FAST)
def _describe(row, means, x, y, channels, margin, floor):  # type: ignore[no-untyped-def]
    """Descriptor of one row of voxels: m, the exponents t, 1 / (mean d - min d + e), min d, and the first channel that has it.

    Loops over few arrays each: only these become vector instructions.
    """
    m, t, inverse, low, nearest = row
    n, width = m.shape
    low[:] = LARGE
    inverse[:] = f32(0)
    for k in range(n):
        begin = margin[2] + channels[k, 3]
        of = means[(x + channels[k, 1]) % means.shape[0], channels[k, 0], y + margin[1] + channels[k, 2], begin : begin + width]
        for z in range(width):
            t[k, z] = of[z]
            inverse[z] += of[z]
            low[z] = min(of[z], low[z])
    share = f32(1 / n)
    for z in range(width):
        inverse[z] = f32(1) / (inverse[z] * share - low[z] + floor)
    for k in range(n - 1, -1, -1):
        for z in range(width):
            nearest[z] = i32(k) if t[k, z] == low[z] else nearest[z]
        for z in range(width):
            t[k, z] = (t[k, z] - low[z]) * inverse[z]
        for z in range(width):
            m[k, z] = exp2(-LOG2E * t[k, z])


@compiled(fastmath=FAST)
def _total(row):  # type: ignore[no-untyped-def]
    """The sum of a row."""
    total = 0.0
    for z in range(row.size):
        total += np.float64(row[z])
    return total


@compiled(fastmath=FAST)
def _compare(a, b, w, sums, g):  # type: ignore[no-untyped-def]
    """The weighted squared difference of two rows of descriptors, and its derivative by the floor e of a.

    ``g`` becomes minus the derivatives by the patch distances of a. All derivatives lack the factor 2.
    """
    m, t, inverse, _, nearest = a
    other = b[0]
    n, width = m.shape
    squares, first, second = sums[0], sums[1], sums[2]
    sums[:] = f32(0)
    for k in range(n):
        for z in range(width):
            g[k, z] = m[k, z] - other[k, z]
            squares[z] += g[k, z] * g[k, z]
        for z in range(width):
            g[k, z] *= m[k, z]
            first[z] += g[k, z]
        for z in range(width):
            second[z] += g[k, z] * t[k, z]
    for z in range(width):
        squares[z] *= w[z]
        inverse[z] *= w[z]
    for z in range(width):
        first[z] *= inverse[z]
        second[z] *= inverse[z]
    share = f32(1 / n)
    for k in range(n):
        for z in range(width):
            lowest = second[z] - first[z] if nearest[z] == i32(k) else f32(0)
            g[k, z] = g[k, z] * inverse[z] - second[z] * share + lowest
    return _total(squares), _total(second)


@compiled(fastmath=FAST)
def _add_to_diagonals(by_means, coefficients, x, y, channels, margin):  # type: ignore[no-untyped-def]
    """Add minus the derivatives of a row of voxels by its channels to those by the patch means."""
    n, width = coefficients.shape
    for k in range(n):
        diagonal, ox, oy, oz = channels[k, 0], channels[k, 1], channels[k, 2], channels[k, 3]
        of = coefficients[k]
        to = by_means[diagonal, x + margin[0] + ox, y + margin[1] + oy, margin[2] + oz : margin[2] + oz + width]
        for z in range(width):
            to[z] += of[z]


@compiled(fastmath=FAST)
def _rows(n, width):  # type: ignore[no-untyped-def]
    """Empty rows for a descriptor of n channels."""
    row = np.zeros(width, np.float32)
    return np.zeros((n, width), np.float32), np.zeros((n, width), np.float32), row, np.zeros_like(row), np.zeros(width, np.int32)


@compiled(fastmath=FAST)
def _compare_slab(a, b, floors, w, radius, steps, channels, begin, end, by_means, need):  # type: ignore[no-untyped-def]
    """The sums of _compare over the planes from ``begin`` to ``end``; with ``need`` the derivatives by the patch means are added up."""
    ny, nz = a.shape[1:]
    rx, ry, rz = radius
    margin = ((a.shape[0] - w.shape[0]) // 2, (ny - w.shape[1]) // 2, (nz - w.shape[2]) // 2)
    size, diagonals, n = 2 * rx + 1, len(steps), len(channels)
    scale = f32(1 / (size * (2 * ry + 1) * (2 * rz + 1)))
    plane, half = np.zeros((ny, nz), np.float32), np.zeros((ny, nz), np.float32)
    windows = np.zeros((2, diagonals, size, ny, nz), np.float32)
    means = np.zeros((2, margin[0] - rx + 1, diagonals, ny, nz), np.float32)
    first, second = _rows(n, w.shape[2]), _rows(n, w.shape[2])
    sums, coefficients = np.zeros((3, w.shape[2]), np.float32), np.zeros((n, w.shape[2]), np.float32)
    value, by_floor = 0.0, 0.0
    for entering in range(begin, end + margin[0] + rx):
        center = entering - rx
        for k in range(diagonals):
            for i in range(2):
                _square_differences(plane, a if i == 0 else b, entering, steps[k])
                _box(windows[i, k, entering % size], half, plane, ry, rz)
                if entering >= begin + 2 * rx:
                    _sum_planes(means[i, center % means.shape[1], k], windows[i, k], scale)
        x = center - margin[0]
        if x >= begin:
            for y in range(w.shape[1]):
                _describe(first, means[0], center, y, channels, margin, floors[0])
                _describe(second, means[1], center, y, channels, margin, floors[1])
                parts = _compare(first, second, w[x, y], sums, coefficients)
                value += parts[0]
                by_floor += parts[1]
                if need:
                    _add_to_diagonals(by_means, coefficients, x, y, channels, margin)
    return value, by_floor


@compiled(parallel=True)
def _first_sweep(a, b, floors, w, radius, steps, channels, by_means, need):  # type: ignore[no-untyped-def]
    """The sums of _compare, per slab; with ``need`` also ``by_means``, the derivatives by the patch means of a."""
    nx = w.shape[0]
    slabs = _slabs(nx, (a.shape[0] - nx) // 2)
    totals = np.zeros((slabs, 2))
    for odd in range(min(2, slabs)):
        for i in prange((slabs + 1) // 2):
            s = 2 * i + odd
            begin, end = s * nx // slabs, (s + 1) * nx // slabs
            totals[s] = _compare_slab(a, b, floors, w, radius, steps, channels, begin, end, by_means, need)
    return totals


@compiled(fastmath=FAST)
def _add_products(gradient, image, sums, x, step, sign):  # type: ignore[no-untyped-def]
    """Add 2 (I(y) - I(y + sign * step)) H to plane x of the gradient; ``sums`` is H in the plane of the smaller of the two voxels."""
    dx, dy, dz = step[0] * sign, step[1] * sign, step[2] * sign
    ny, nz = sums.shape
    first, last = max(0, -dz), min(nz, nz - dz)
    for y in range(max(0, -dy), min(ny, ny - dy)):
        out, here, there = gradient[x, y, first:last], image[x, y, first:last], image[x + dx, y + dy, first + dz : last + dz]
        h = sums[y, first:last] if sign > 0 else sums[y + dy, first + dz : last + dz]
        for z in range(out.size):
            out[z] += f32(2) * (here[z] - there[z]) * h[z]


@compiled(parallel=True)
def _second_sweep(a, radius, steps, by_means, gradient):  # type: ignore[no-untyped-def]
    """Add the gradient by ``a`` to ``gradient``, from the derivatives by the patch means."""
    nx, ny, nz = a.shape
    rx, ry, rz = radius
    size, diagonals, reach = 2 * rx + 1, len(steps), steps.max()
    scale = f32(1 / (size * (2 * ry + 1) * (2 * rz + 1)))
    slabs = _slabs(nx, reach + rx)
    for s in prange(slabs):
        begin, end = s * nx // slabs, (s + 1) * nx // slabs
        half = np.zeros((ny, nz), np.float32)
        windows, sums = np.zeros((diagonals, size, ny, nz), np.float32), np.zeros((diagonals, reach + 1, ny, nz), np.float32)
        for entering in range(begin - reach - rx, end + rx):
            x = entering - rx
            for k in range(diagonals):
                if 0 <= entering < nx:
                    _box(windows[k, entering % size], half, by_means[k, entering], ry, rz)
                else:
                    windows[k, entering % size] = f32(0)
                if 0 <= x < nx:
                    _sum_planes(sums[k, x % (reach + 1)], windows[k], scale)
                if x >= begin:
                    if x + steps[k, 0] < nx:
                        _add_products(gradient, a, sums[k, x % (reach + 1)], x, steps[k], 1)
                    if x - steps[k, 0] >= 0:
                        _add_products(gradient, a, sums[k, (x - steps[k, 0]) % (reach + 1)], x, steps[k], -1)


def _tables(pairs: Sequence[tuple[Offset, Offset]]) -> tuple[np.ndarray, np.ndarray]:
    """The diagonals (k, 3), their first component not negative, and for each channel its diagonal and the offset o, (n, 4)."""
    steps: list[Offset] = []
    channels = []
    for s, t in pairs:
        start, end = sorted((s, t))
        step = tuple(e - b for b, e in zip(start, end, strict=True))
        if step not in steps:
            steps.append(step)
        channels.append((steps.index(step), *start))
    return np.array(steps, np.int64), np.array(channels, np.int64)


def _as_volume(x: np.ndarray) -> np.ndarray:
    """A 2D image as a volume with one voxel along the middle axis: the slabs are cut along the first axis."""
    return np.ascontiguousarray(x if x.ndim == 3 else x[:, None, :])


def _compare_images(a, b, floors, w, radius, steps, channels, gradient):  # type: ignore[no-untyped-def]
    """The mean squared difference of the descriptors of two volumes and, unless ``gradient`` is None, its derivative by the floor of a.

    The derivative by a is added to ``gradient``.
    """
    need = gradient is not None
    by_means = np.zeros((len(steps), *a.shape) if need else (1, 1, 1, 1), np.float32)
    value, by_floor = _first_sweep(a, b, floors, w, radius, steps, channels, by_means, need).sum(0)
    scale = 1 / (len(channels) * float(w.sum(dtype=np.float64)))
    if need:
        _second_sweep(a, radius, steps, by_means, gradient)
        gradient *= np.float32(-2 * scale)
    return scale * value, 2 * scale * by_floor


class _FusedDifference(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, floor_a: Tensor, floor_b: Tensor, weight: Tensor, radius, pairs):  # type: ignore[no-untyped-def]
        images, floors = ([x.detach().numpy() for x in pair] for pair in ((a, b), (floor_a, floor_b)))
        values, by_floors = np.zeros(a.shape[:2]), np.zeros((2, *a.shape[:2]))
        gradients = [np.zeros_like(images[k]) if any(ctx.needs_input_grad[k : k + 3 : 2]) else None for k in (0, 1)]
        for which, gradient in enumerate(gradients):
            if which == 1 and gradient is None:
                continue
            order = (which, 1 - which)
            for i in np.ndindex(*a.shape[:2]):
                first, second = (_as_volume(images[k][i]) for k in order)
                pair, w = np.array([floors[k][i] for k in order], np.float32), _as_volume(weight[i[0], 0].numpy())
                into = None if gradient is None else _as_volume(gradient[i])
                values[i], by_floors[which][i] = _compare_images(first, second, pair, w, radius, *_tables(pairs), into)
        saved = [None if g is None else torch.from_numpy(g) for g in (*gradients, *by_floors.astype(np.float32))]
        ctx.save_for_backward(*saved)
        return torch.from_numpy(values).to(a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def]
        gradients = [None if x is None else x * g.view(*g.shape, *(1,) * (x.ndim - 2)) for x in ctx.saved_tensors]
        return *gradients, None, None, None


def fused_difference(
    a: Tensor, b: Tensor, floor_a: Tensor, floor_b: Tensor, weight: Tensor | None, radius: int, pairs: Sequence[tuple[Offset, Offset]]
) -> Tensor:
    """(b, c) mean over space and channels of the squared difference of the descriptors of a and b, CPU; gradients to images and floors.

    Args:
        a, b: float32 images (b, c, *s), with a margin of ``radius`` and the largest component of ``pairs`` on each side.
        floor_a, floor_b: (b, c) the e of each image.
        weight: of the voxels without the margin, (b, 1, *s) or None.
        pairs: neighbors of a voxel whose patches are compared, one pair for each channel.
    """
    margin = radius + max(map(max, itertools.chain(*pairs)))
    shape = [n - 2 * margin for n in a.shape[2:]]
    w = torch.ones(1, 1, *shape) if weight is None else weight.detach().float()
    slices = len(shape) == 2
    radii = (radius, 0, radius) if slices else (radius,) * 3
    solid = [tuple((o[0], 0, o[1]) if slices else o for o in pair) for pair in pairs]
    return _FusedDifference.apply(a, b.expand_as(a), floor_a, floor_b.expand_as(floor_a), w.expand(len(a), -1, *shape), radii, solid)
