"""The fused CPU kernel of LNCC, model (32): value and gradient in two sweeps over the image, without volumes of window sums.

A sweep goes along the first axis. Six plane accumulators hold the sums of w, wa, wb, waa, wbb, wab over the window's
first axis (add the plane that enters, subtract the one that leaves); from them come rows summed over the second axis, and
from those the window sums along the third. Accumulators are float64, so running sums do not drift. The second sweep
does the same to the three coefficient volumes of the gradient:

    d cc^2(x) / d a(y) = w(y) [p(x) (b(y) - mean_b(x)) - q(x) (a(y) - mean_a(x))]    for y in the window of x
    p = 2 (|cov| + e) sign(cov) / (A B n),   q = 2 (|cov| + e)^2 / (A^2 B n),   A = var_a + e_a, B = var_b + e_b

plus the part through e_a and e. The image is cut into slabs by its shape alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from rdmm.kernels.compiled import FAST, compiled
from rdmm.types import Tensor


@compiled(inline="always")
def _slabs(n: int, r: int) -> int:
    """Number of slabs along an axis of n voxels: at most 16, each at least three windows long. Not measured."""
    return max(1, min(16, n // (3 * (2 * r + 1))))


@compiled(fastmath=FAST)
def _add_plane(acc, a, b, w, x, sign):  # type: ignore[no-untyped-def]
    """Add plane x of w, wa, wb, waa, wbb, wab to the six accumulators, or subtract it (sign -1)."""
    for y in range(a.shape[1]):
        for z in range(a.shape[2]):
            wv = sign * np.float64(w[x, y, z])
            av, bv = np.float64(a[x, y, z]), np.float64(b[x, y, z])
            wa, wb = wv * av, wv * bv
            acc[0, y, z] += wv
            acc[1, y, z] += wa
            acc[2, y, z] += wb
            acc[3, y, z] += wa * av
            acc[4, y, z] += wb * bv
            acc[5, y, z] += wa * bv


@compiled(fastmath=FAST)
def _add_coefficients(acc, f, x, sign):  # type: ignore[no-untyped-def]
    """Add plane x of the three coefficient volumes to the accumulators, or subtract it (sign -1)."""
    for k in range(3):
        for y in range(f.shape[2]):
            for z in range(f.shape[3]):
                acc[k, y, z] += sign * np.float64(f[k, x, y, z])


@compiled(fastmath=FAST)
def _add_row(row, acc, y, sign):  # type: ignore[no-untyped-def]
    """Add row y of the accumulators, or subtract it (sign -1)."""
    for k in range(row.shape[0]):
        for z in range(row.shape[1]):
            row[k, z] += sign * acc[k, y, z]


@compiled(fastmath=FAST)
def _window(line, row, r):  # type: ignore[no-untyped-def]
    """Window sums of the rows along the last axis."""
    n = row.shape[1]
    for k in range(row.shape[0]):
        s = 0.0
        for z in range(min(r, n)):
            s += row[k, z]
        for z in range(n):
            if z + r < n:
                s += row[k, z + r]
            if z - r - 1 >= 0:
                s -= row[k, z - r - 1]
            line[k, z] = s


@compiled(fastmath=FAST, error_model="numpy")
def _statistics(line, w, out, x, y, ea, eb, e, totals, need):  # type: ignore[no-untyped-def]
    """cc^2 of one row into totals[0], its derivatives by e_a and e into totals[1:3], and the coefficients into ``out``."""
    value, by_ea, by_e = 0.0, 0.0, 0.0
    for z in range(line.shape[1]):
        wv = np.float64(w[x, y, z])
        inv = 1.0 / max(line[0, z], 1e-6)
        ma, mb = line[1, z] * inv, line[2, z] * inv
        va = max(line[3, z] * inv - ma * ma, 0.0) + ea
        vb = max(line[4, z] * inv - mb * mb, 0.0) + eb
        cov = line[5, z] * inv - ma * mb
        s = abs(cov) + e
        iab = 1.0 / (va * vb)
        cc = s * s * iab
        value += wv * cc
        if need:
            by_ea -= wv * cc / va
            by_e += wv * 2.0 * s * iab
            p = wv * inv * 2.0 * s * iab
            p = p if cov >= 0 else -p
            q = wv * inv * 2.0 * cc / va
            out[0, x, y, z] = p
            out[1, x, y, z] = q
            out[2, x, y, z] = q * ma - p * mb
    totals[0] += value
    totals[1] += by_ea
    totals[2] += by_e


@compiled(parallel=True)
def _first_sweep(a, b, w, radius, ea, eb, e, out, need):  # type: ignore[no-untyped-def]
    """Sums of cc^2 and of its derivatives by e_a and e, per slab; with ``need`` also the coefficients ``out`` of the gradient."""
    nx, ny, nz = a.shape
    rx, ry, rz = radius
    slabs = _slabs(nx, rx)
    totals = np.zeros((slabs, 3))
    for s in prange(slabs):
        x0, x1 = s * nx // slabs, (s + 1) * nx // slabs
        acc, row, line = np.zeros((6, ny, nz)), np.zeros((6, nz)), np.zeros((6, nz))
        for x in range(max(0, x0 - rx), min(nx, x0 + rx)):
            _add_plane(acc, a, b, w, x, 1.0)
        for x in range(x0, x1):
            if x + rx < nx:
                _add_plane(acc, a, b, w, x + rx, 1.0)
            if x - rx - 1 >= 0 and x > x0:
                _add_plane(acc, a, b, w, x - rx - 1, -1.0)
            row[:] = 0.0
            for y in range(min(ry, ny)):
                _add_row(row, acc, y, 1.0)
            for y in range(ny):
                if y + ry < ny:
                    _add_row(row, acc, y + ry, 1.0)
                if y - ry - 1 >= 0:
                    _add_row(row, acc, y - ry - 1, -1.0)
                _window(line, row, rz)
                _statistics(line, w, out, x, y, ea, eb, e, totals[s], need)
    return totals


@compiled(parallel=True)
def _second_sweep(a, b, w, radius, out, grad, scale, mean_scale, mean):  # type: ignore[no-untyped-def]
    """Add the gradient by ``a`` to ``grad``, from the window sums of the coefficients ``out``."""
    nx, ny, nz = a.shape
    rx, ry, rz = radius
    slabs = _slabs(nx, rx)
    for s in prange(slabs):
        x0, x1 = s * nx // slabs, (s + 1) * nx // slabs
        acc, row, line = np.zeros((3, ny, nz)), np.zeros((3, nz)), np.zeros((3, nz))
        for x in range(max(0, x0 - rx), min(nx, x0 + rx)):
            _add_coefficients(acc, out, x, 1.0)
        for x in range(x0, x1):
            if x + rx < nx:
                _add_coefficients(acc, out, x + rx, 1.0)
            if x - rx - 1 >= 0 and x > x0:
                _add_coefficients(acc, out, x - rx - 1, -1.0)
            row[:] = 0.0
            for y in range(min(ry, ny)):
                _add_row(row, acc, y, 1.0)
            for y in range(ny):
                if y + ry < ny:
                    _add_row(row, acc, y + ry, 1.0)
                if y - ry - 1 >= 0:
                    _add_row(row, acc, y - ry - 1, -1.0)
                _window(line, row, rz)
                for z in range(nz):
                    av, bv = a[x, y, z], b[x, y, z]
                    g = scale * (bv * line[0, z] - av * line[1, z] + line[2, z]) + mean_scale * (av - mean)
                    grad[x, y, z] += w[x, y, z] * g


def _channel(a, b, w, radii, weights, kappa, grad):  # type: ignore[no-untyped-def]
    """Weighted mean of cc^2 of one channel (x, y, z); adds its gradient with respect to ``a`` to ``grad`` unless that is None."""
    total = float(w.sum(dtype=np.float64))
    mean_a = float((w * a).sum(dtype=np.float64)) / total
    mean_b = float((w * b).sum(dtype=np.float64)) / total
    a, b = a - a.dtype.type(mean_a), b - b.dtype.type(mean_b)
    tiny = float(np.finfo(np.float32).tiny) ** 0.5
    rest = float((w * a).sum(dtype=np.float64)) / total
    var_a = float((w * a * a).sum(dtype=np.float64)) / total - rest**2 + tiny
    var_b = float((w * b * b).sum(dtype=np.float64)) / total + tiny
    ea, eb = kappa * var_a, kappa * var_b
    e = (ea * eb) ** 0.5
    out = np.empty((3, *a.shape) if grad is not None else (3, 1, 1, 1), dtype=a.dtype)
    value = 0.0
    for radius, weight in zip(radii, weights, strict=True):
        radius = tuple(min(r, n - 1) for r, n in zip(radius, a.shape, strict=True))
        sums = _first_sweep(a, b, w, radius, ea, eb, e, out, grad is not None).sum(0)
        value += weight * sums[0] / total
        if grad is not None:
            scale = weight / total
            # e_a = kappa VAR(a), e = kappa sqrt(VAR(a) VAR(b)); d VAR(a) / d a(y) = 2 w (a - mean) / total
            by_variance = kappa * sums[1] + 0.5 * e / var_a * sums[2]
            _second_sweep(a, b, w, radius, out, grad, scale, scale * 2 * by_variance / total, rest)
    return value


def _as_volume(x: np.ndarray) -> np.ndarray:
    """A 2D image as a volume with one voxel along the middle axis: the slabs are cut along the first axis."""
    return np.ascontiguousarray(x if x.ndim == 3 else x[:, None, :])


class _FusedCorrelation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, weight, radii, weights, kappa):  # type: ignore[no-untyped-def]
        values = np.zeros(a.shape[0])
        grads: list[np.ndarray | None] = [None, None]
        arrays = [x.detach().numpy() for x in (a, b)]
        masks = np.ones_like(arrays[0][:, :1]) if weight is None else weight.detach().to(a.dtype).numpy()
        for which in (0, 1):
            total = np.zeros_like(arrays[which]) if ctx.needs_input_grad[which] else None
            if which == 1 and total is None:
                continue
            grads[which] = total
            values[:] = 0
            for i in range(a.shape[0]):
                for c in range(a.shape[1]):
                    first, second = (_as_volume(arrays[k][i, c]) for k in (which, 1 - which))
                    grad = None if total is None else _as_volume(total[i, c])
                    values[i] += _channel(first, second, _as_volume(masks[i, 0]), radii, weights, kappa, grad) / a.shape[1]
        ctx.save_for_backward(*(None if g is None else torch.from_numpy(g) / a.shape[1] for g in grads))
        return torch.from_numpy(values).to(a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def]
        scale = g.view(-1, *(1,) * (next(x for x in ctx.saved_tensors if x is not None).ndim - 1))
        grads = [None if x is None else x * scale for x in ctx.saved_tensors]
        return grads[0], grads[1], None, None, None, None


def fused_correlation(
    a: Tensor, b: Tensor, weight: Tensor | None, radii: Sequence[tuple[int, ...]], weights: Sequence[float], kappa: float
) -> Tensor:
    """(b,) weighted mean over windows of ``local_correlation(a, b, weight, radius)``, CPU; gradients to a and b."""
    radii = [r if len(r) == 3 else (r[0], 0, r[1]) for r in radii]
    if b.shape != a.shape:
        b = b.expand_as(a)
    if weight is not None:
        weight = weight.expand(a.shape[0], *weight.shape[1:])
    return _FusedCorrelation.apply(a, b.to(a.dtype), weight, radii, list(weights), kappa)
