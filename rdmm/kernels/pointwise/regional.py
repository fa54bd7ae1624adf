"""The velocity of RDMM at each voxel by itself, model (7) without its Gaussians, compiled by numba.

From a momentum m and weights w, the fields w_i m; a smoother makes nu_i of them; then v = sum_i w_i nu_i, and the products m . nu_i. Two
loops do this, and the gradients of it: each is the transpose of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numba import prange
from torch.autograd.function import once_differentiable

from rdmm.kernels.compiled import FAST, compiled
from rdmm.types import Tensor

BLOCK = 512
"""Voxels that a thread takes at a time: their fields fit into the nearest cache. Not measured."""


@compiled(fastmath=FAST, inline="always")
def _add_products(a, b, out):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] += a[k] * b[k]


@compiled(fastmath=FAST, parallel=True)
def _spread(m, w, out):  # type: ignore[no-untyped-def]
    """out_i += w_i m, for m (d, k), w (n, k) and out (n, d, k) at k voxels."""
    n, d, size = out.shape
    for block in prange((size + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min((block + 1) * BLOCK, size)
        for i in range(n):
            for a in range(d):
                _add_products(w[i, start:end], m[a, start:end], out[i, a, start:end])


@compiled(fastmath=FAST, parallel=True)
def _gather(m, w, nu, v, p):  # type: ignore[no-untyped-def]
    """v += sum_i w_i nu_i and p_i += m . nu_i, for v like m, p like w and nu (n, d, k)."""
    n, d, size = nu.shape
    for block in prange((size + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min((block + 1) * BLOCK, size)
        for i in range(n):
            for a in range(d):
                _add_products(w[i, start:end], nu[i, a, start:end], v[a, start:end])
                _add_products(m[a, start:end], nu[i, a, start:end], p[i, start:end])


def _run(loop: Callable[..., None], *fields: Tensor, space: int) -> None:
    """Run ``loop`` for each item of the batch. Fields (b, *components, *s) of a batch of 1 serve all, or sum up what all add to them."""
    arrays = [x.detach().contiguous().flatten(x.ndim - space).numpy() for x in fields]
    for b in range(max(map(len, arrays))):
        loop(*(x[b % len(x)] for x in arrays))


class _Velocity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, w: Tensor, smoothed: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        b, space = max(len(m), len(w)), m.ndim - 2
        x = m.new_zeros(b, w.shape[1], *m.shape[1:])
        _run(_spread, m, w, x, space=space)
        nu, v, p = smoothed(x), m.new_zeros(b, *m.shape[1:]), m.new_zeros(b, *w.shape[1:])
        _run(_gather, m, w, nu, v, p, space=space)
        ctx.save_for_backward(m, w, nu)
        ctx.smoothed = smoothed
        return v, p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_v: Tensor, by_p: Tensor) -> tuple[Tensor, Tensor, None]:
        m, w, nu = ctx.saved_tensors
        space = m.ndim - 2
        by_nu, by_m, by_w = torch.zeros_like(nu), torch.zeros_like(m), torch.zeros_like(w)
        for a, c in ((by_v, w), (m, by_p)):
            _run(_spread, a, c, by_nu, space=space)
        for a, c, field in ((by_v, by_p, nu), (m, w, ctx.smoothed(by_nu))):
            _run(_gather, a, c, field, by_m, by_w, space=space)
        return by_m, by_w, None


def velocity(m: Tensor, w: Tensor, smoothed: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """v = sum_i w_i nu_i (b, d, *s), model (7), and m . nu_i (b, n, *s), where nu = smoothed(x), x_i = w_i m.

    Args:
        m: momentum (b, d, *s).
        w: weights (b, n, *s). A batch of 1, of momentum or weights, serves all.
        smoothed: a self-adjoint map of fields (b, n, d, *s).
    """
    return _Velocity.apply(m, w, smoothed)
