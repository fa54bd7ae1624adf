"""Sums of Gaussians between clouds of points, compiled by numba for float32 on CPU: velocity and force of control points.

    v_i = sum_j k(x_i - q_j) p_j,    k(z) = sum_s w_s exp(-|z|^2 / (2 sigma_s^2))

with the derivatives (g is the gradient with respect to v, and k' = sum_s w_s / sigma_s^2 exp(...))

    dp_j = sum_i k g_i,    dx_i = -sum_j k' (g_i . p_j) (x_i - q_j),    dq_j = -sum_i k' (g_i . p_j) (q_j - x_i).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import prange
from torch.autograd.function import once_differentiable

from rdmm.kernels.compiled import FAST, compiled
from rdmm.kernels.simd import LOG2E, MIN_EXPONENT, exp2, f32
from rdmm.types import Tensor

POINTS_AT_ONCE = 64
"""Points that one task handles: inner loops over them become vector instructions. Not measured."""


@compiled(inline="always", fastmath=FAST)
def _kernel(x, q, j, c, w, r, k):  # type: ignore[no-untyped-def]
    """k[i] = sum_s w_s 2^(-c_s |x_i - q_j|^2) for WIDTH points x (d, WIDTH)."""
    for i in range(POINTS_AT_ONCE):
        r[i] = f32(0)
        k[i] = f32(0)
    for a in range(x.shape[0]):
        for i in range(POINTS_AT_ONCE):
            z = x[a, i] - q[a, j]
            r[i] += z * z
    for s in range(len(c)):
        for i in range(POINTS_AT_ONCE):
            k[i] += w[s] * exp2(max(-c[s] * r[i], MIN_EXPONENT))


@compiled(parallel=True, fastmath=FAST)
def _sums(x, q, p, c, w, out):  # type: ignore[no-untyped-def]
    """out_i = sum_j k(x_i - q_j) p_j; x, out (d, n), q, p (d, m)."""
    d, n = x.shape
    for t in prange((n + POINTS_AT_ONCE - 1) // POINTS_AT_ONCE):
        points, total = np.empty((d, POINTS_AT_ONCE), np.float32), np.zeros((d, POINTS_AT_ONCE), np.float32)
        r, k = np.empty(POINTS_AT_ONCE, np.float32), np.empty(POINTS_AT_ONCE, np.float32)
        for a in range(d):
            for i in range(POINTS_AT_ONCE):
                points[a, i] = x[a, min(t * POINTS_AT_ONCE + i, n - 1)]
        for j in range(q.shape[1]):
            _kernel(points, q, j, c, w, r, k)
            for a in range(d):
                for i in range(POINTS_AT_ONCE):
                    total[a, i] += k[i] * p[a, j]
        for a in range(d):
            for i in range(min(POINTS_AT_ONCE, n - t * POINTS_AT_ONCE)):
                out[a, t * POINTS_AT_ONCE + i] = total[a, i]


@compiled(parallel=True, fastmath=FAST)
def _slopes(x, g, q, p, c, w, out):  # type: ignore[no-untyped-def]
    """out_i = -sum_j k'(x_i - q_j) (g_i . p_j) (x_i - q_j)."""
    d, n = x.shape
    for t in prange((n + POINTS_AT_ONCE - 1) // POINTS_AT_ONCE):
        points, slopes = np.empty((d, POINTS_AT_ONCE), np.float32), np.empty((d, POINTS_AT_ONCE), np.float32)
        total, dot = np.zeros((d, POINTS_AT_ONCE), np.float32), np.empty(POINTS_AT_ONCE, np.float32)
        r, k = np.empty(POINTS_AT_ONCE, np.float32), np.empty(POINTS_AT_ONCE, np.float32)
        for a in range(d):
            for i in range(POINTS_AT_ONCE):
                points[a, i] = x[a, min(t * POINTS_AT_ONCE + i, n - 1)]
                slopes[a, i] = g[a, min(t * POINTS_AT_ONCE + i, n - 1)]
        for j in range(q.shape[1]):
            _kernel(points, q, j, c, w, r, k)
            for i in range(POINTS_AT_ONCE):
                dot[i] = f32(0)
            for a in range(d):
                for i in range(POINTS_AT_ONCE):
                    dot[i] += slopes[a, i] * p[a, j]
            for a in range(d):
                for i in range(POINTS_AT_ONCE):
                    total[a, i] -= k[i] * dot[i] * (points[a, i] - q[a, j])
        for a in range(d):
            for i in range(min(POINTS_AT_ONCE, n - t * POINTS_AT_ONCE)):
                out[a, t * POINTS_AT_ONCE + i] = total[a, i]


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, p: Tensor, sigmas: Sequence[float], weights: Sequence[float]) -> Tensor:
        ctx.save_for_backward(x, q, p)
        ctx.kernel = sigmas, weights
        return _call_kernel(_sums, (x, q, p), sigmas, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, q, p = ctx.saved_tensors
        sigmas, weights = ctx.kernel
        steep = [w / s**2 for s, w in zip(sigmas, weights, strict=True)]
        by_x = _call_kernel(_slopes, (x, g, q, p), sigmas, steep) if ctx.needs_input_grad[0] else None
        by_q = _call_kernel(_slopes, (q, p, x, g), sigmas, steep) if ctx.needs_input_grad[1] else None
        by_p = _call_kernel(_sums, (q, x, g), sigmas, weights) if ctx.needs_input_grad[2] else None
        return by_x, by_q, by_p, None, None


def _call_kernel(kernel: Any, clouds: Sequence[Tensor], sigmas: Sequence[float], weights: Sequence[float]) -> Tensor:
    """Run a compiled kernel on the clouds (d, n); the result has the shape of the first one."""
    arrays = [np.ascontiguousarray(c.detach().numpy()) for c in clouds]
    c = np.array([0.5 / s**2 for s in sigmas], np.float32) * LOG2E
    out = np.empty_like(arrays[0])
    kernel(*arrays, c, np.array(weights, np.float32), out)
    return torch.from_numpy(out)


def gaussian_sums(x: Tensor, q: Tensor, p: Tensor, sigmas: Sequence[float], weights: Sequence[float]) -> Tensor:
    """sum_j k(x_i - q_j) p_j, (d, n): x (d, n), q and p (d, m), float32 on CPU.

    First derivatives with respect to all three are available, second ones are not.
    """
    return _Sums.apply(x, q, p, sigmas, weights)


@compiled(inline="always", fastmath=FAST)
def _pairs(q, p, j, c, w, points, momenta, z, k, dot):  # type: ignore[no-untyped-def]
    """z = q_i - q_j (d, WIDTH), k' and p_i . p_j of WIDTH points i, whose q and p are ``points`` and ``momenta``, with point j."""
    _kernel(points, q, j, c, w, dot, k)
    for i in range(POINTS_AT_ONCE):
        dot[i] = f32(0)
    for a in range(q.shape[0]):
        for i in range(POINTS_AT_ONCE):
            z[a, i] = points[a, i] - q[a, j]
            dot[i] += momenta[a, i] * p[a, j]


@compiled(parallel=True, fastmath=FAST)
def _forces(q, p, c, w, out):  # type: ignore[no-untyped-def]
    """out_i = sum_j k'(z) (p_i . p_j) z, z = q_i - q_j."""
    d, n = q.shape
    for t in prange((n + POINTS_AT_ONCE - 1) // POINTS_AT_ONCE):
        points, momenta = np.empty((d, POINTS_AT_ONCE), np.float32), np.empty((d, POINTS_AT_ONCE), np.float32)
        z, total = np.empty((d, POINTS_AT_ONCE), np.float32), np.zeros((d, POINTS_AT_ONCE), np.float32)
        k, dot = np.empty(POINTS_AT_ONCE, np.float32), np.empty(POINTS_AT_ONCE, np.float32)
        for a in range(d):
            for i in range(POINTS_AT_ONCE):
                points[a, i], momenta[a, i] = q[a, min(t * POINTS_AT_ONCE + i, n - 1)], p[a, min(t * POINTS_AT_ONCE + i, n - 1)]
        for j in range(n):
            _pairs(q, p, j, c, w, points, momenta, z, k, dot)
            for a in range(d):
                for i in range(POINTS_AT_ONCE):
                    total[a, i] += k[i] * dot[i] * z[a, i]
        for a in range(d):
            for i in range(min(POINTS_AT_ONCE, n - t * POINTS_AT_ONCE)):
                out[a, t * POINTS_AT_ONCE + i] = total[a, i]


@compiled(parallel=True, fastmath=FAST)
def _force_slopes(q, p, g, c, w, steeper, by_q, by_p):  # type: ignore[no-untyped-def]
    """Gradients of sum_i g_i . force_i: with h = g_i - g_j and k'' = sum_s w_s / sigma_s^4 exp(...),

    by_q_i = sum_j (p_i . p_j) (k' h - k'' (h . z) z),    by_p_i = sum_j k' (h . z) p_j.
    """
    d, n = q.shape
    for t in prange((n + POINTS_AT_ONCE - 1) // POINTS_AT_ONCE):
        points, momenta = np.empty((d, POINTS_AT_ONCE), np.float32), np.empty((d, POINTS_AT_ONCE), np.float32)
        z, h = np.empty((d, POINTS_AT_ONCE), np.float32), np.empty((d, POINTS_AT_ONCE), np.float32)
        sum_q, sum_p = np.zeros((d, POINTS_AT_ONCE), np.float32), np.zeros((d, POINTS_AT_ONCE), np.float32)
        k, steep, dot, along = (
            np.empty(POINTS_AT_ONCE, np.float32),
            np.empty(POINTS_AT_ONCE, np.float32),
            np.empty(POINTS_AT_ONCE, np.float32),
            np.empty(POINTS_AT_ONCE, np.float32),
        )
        slopes = np.empty((d, POINTS_AT_ONCE), np.float32)
        for a in range(d):
            for i in range(POINTS_AT_ONCE):
                first = min(t * POINTS_AT_ONCE + i, n - 1)
                points[a, i], momenta[a, i], slopes[a, i] = q[a, first], p[a, first], g[a, first]
        for j in range(n):
            _kernel(points, q, j, c, steeper, dot, steep)
            _pairs(q, p, j, c, w, points, momenta, z, k, dot)
            for i in range(POINTS_AT_ONCE):
                along[i] = f32(0)
            for a in range(d):
                for i in range(POINTS_AT_ONCE):
                    h[a, i] = slopes[a, i] - g[a, j]
                    along[i] += h[a, i] * z[a, i]
            for a in range(d):
                for i in range(POINTS_AT_ONCE):
                    sum_q[a, i] += dot[i] * (k[i] * h[a, i] - steep[i] * along[i] * z[a, i])
                    sum_p[a, i] += k[i] * along[i] * p[a, j]
        for a in range(d):
            for i in range(min(POINTS_AT_ONCE, n - t * POINTS_AT_ONCE)):
                by_q[a, t * POINTS_AT_ONCE + i], by_p[a, t * POINTS_AT_ONCE + i] = sum_q[a, i], sum_p[a, i]


class _Forces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, p: Tensor, sigmas: Sequence[float], weights: Sequence[float]) -> Tensor:
        ctx.save_for_backward(q, p)
        ctx.kernel = sigmas, weights
        return _call_kernel(_forces, (q, p), sigmas, [w / s**2 for s, w in zip(sigmas, weights, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        sigmas, weights = ctx.kernel
        q, p, slopes = (np.ascontiguousarray(x.detach().numpy()) for x in (*ctx.saved_tensors, g))
        c = np.array([0.5 / s**2 for s in sigmas], np.float32) * LOG2E
        steep, steeper = (np.array([w / s**k for s, w in zip(sigmas, weights, strict=True)], np.float32) for k in (2, 4))
        by_q, by_p = np.empty_like(q), np.empty_like(q)
        _force_slopes(q, p, slopes, c, steep, steeper, by_q, by_p)
        return torch.from_numpy(by_q), torch.from_numpy(by_p), None, None


def gaussian_forces(q: Tensor, p: Tensor, sigmas: Sequence[float], weights: Sequence[float]) -> Tensor:
    """-dH/dq, (d, n), of control points q and momenta p (d, n), float32 on CPU.

    First derivatives with respect to both are available, second ones are not.
    """
    return _Forces.apply(q, p, sigmas, weights)
