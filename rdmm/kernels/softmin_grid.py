"""Log-sum-exp against a Gaussian on a grid, axis by axis, compiled by numba for float32 on CPU.

WIDTH lines are copied to a buffer, each as a column, so that every inner loop runs over lines and becomes vector instructions.
For each output, the largest exponent is searched first in the blocks of BLOCK inputs that were summed for the previous output, then
in those whose bound is close to it. Blocks whose terms are all less than 2^-CUTOFF times the largest are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import prange

from rdmm.kernels.compiled import FAST, compiled
from rdmm.kernels.simd import LN2, LOG2E, MIN_EXPONENT, MIN_VALUE, exp2, f32
from rdmm.types import Tensor

WIDTH, BLOCK = 128, 8
"""Lines handled at once, and inputs along a line that are skipped or summed together. Not measured."""

CUTOFF = np.float32(24.0)
"""Terms smaller than 2^-CUTOFF times the largest are below the precision of float32 and are skipped."""

LOG_ZERO, EMPTY = np.float32(-1e30), np.float32(-1e29)
"""Logarithm that stands for 0, and the value below which a logarithm is treated as it."""

TINY = np.float32(1e-37)
"""Smallest argument of a logarithm: just above the smallest normal float32."""


@compiled(inline="always", fastmath=FAST)
def _above(block, top, less):  # type: ignore[no-untyped-def]
    """Whether block - less is within CUTOFF of ``top`` in any line."""
    gap = MIN_VALUE
    for w in range(WIDTH):
        gap = max(gap, block[w] - top[w])
    return gap - less > -CUTOFF


@compiled(inline="always", fastmath=FAST)
def _find_top(g, a, i, k, block, top):  # type: ignore[no-untyped-def]
    """Compute the largest exponents of block k for output i into ``block``, and update ``top``, those of all blocks so far."""
    for w in range(WIDTH):
        block[w] = MIN_VALUE
    for j in range(k * BLOCK, min(k * BLOCK + BLOCK, g.shape[0])):
        d = a * f32((i - j) * (i - j))
        for w in range(WIDTH):
            block[w] = max(block[w], g[j, w] - d)
    for w in range(WIDTH):
        top[w] = max(top[w], block[w])


@compiled(fastmath=FAST)
def _lines(g, out, a):  # type: ignore[no-untyped-def]
    """out_i = log2 sum_j 2^(g_j - a (i-j)^2) for WIDTH lines at once; g, out (n, WIDTH)."""
    n, blocks = g.shape[0], (g.shape[0] + BLOCK - 1) // BLOCK
    highest, block = np.empty((blocks, WIDTH), np.float32), np.empty((blocks, WIDTH), np.float32)
    top, total = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    active, known = np.zeros(blocks, np.bool_), np.zeros(blocks, np.bool_)
    for k in range(blocks):
        top[:] = MIN_VALUE
        _find_top(g, f32(0), 0, k, highest[k], top)
        active[k] = top.max() > EMPTY
    filled = active.copy()
    if not filled.any():
        out[:] = LOG_ZERO
        return
    for i in range(n):
        top[:] = MIN_VALUE
        for k in range(blocks):
            known[k] = active[k]
            if known[k]:
                _find_top(g, a, i, k, block[k], top)
        for k in range(blocks):
            apart = max(0, k * BLOCK - i, i - (k * BLOCK + BLOCK - 1))
            if filled[k] and not known[k] and _above(highest[k], top, a * f32(apart * apart)):
                known[k] = True
                _find_top(g, a, i, k, block[k], top)
        total[:] = f32(0)
        for k in range(blocks):
            active[k] = known[k] and _above(block[k], top, f32(0))
            if active[k]:
                for j in range(k * BLOCK, min(k * BLOCK + BLOCK, n)):
                    d = a * f32((i - j) * (i - j))
                    for w in range(WIDTH):
                        total[w] += exp2(max(g[j, w] - d - top[w], MIN_EXPONENT))
        for w in range(WIDTH):
            out[i, w] = max(top[w] + np.log2(max(total[w], TINY)), LOG_ZERO)


@compiled(parallel=True, fastmath=FAST)
def _along(g, out, n, inner, a):  # type: ignore[no-untyped-def]
    """All lines of an axis of n voxels with stride ``inner``; g and out are flat and may be one array."""
    count = g.size // n
    for group in prange((count + WIDTH - 1) // WIDTH):
        first = group * WIDTH
        lines = min(WIDTH, count - first)
        start = np.empty(WIDTH, np.int64)
        for w in range(WIDTH):
            line = first + min(w, lines - 1)
            start[w] = (line // inner) * n * inner + line % inner
        buffer, result = np.empty((n, WIDTH), np.float32), np.empty((n, WIDTH), np.float32)
        for j in range(n):
            for w in range(WIDTH):
                buffer[j, w] = g[start[w] + j * inner] * LOG2E
        _lines(buffer, result, a)
        for j in range(n):
            for w in range(lines):
                out[start[w] + j * inner] = result[j, w] * LN2


def log_convolve(g: Tensor, alpha: Sequence[float]) -> Tensor:
    """log sum_y exp(g(y) - sum_k alpha_k (x_k - y_k)^2 / 2), x and y in voxels; g (k, *s) float32 on CPU, is overwritten."""
    out = g.detach().contiguous().numpy().reshape(-1)
    for axis, a in enumerate(alpha):
        shape = g.shape[g.ndim - len(alpha) :]
        _along(out, out, shape[axis], math.prod(shape[axis + 1 :]), f32(a / 2) * LOG2E)
    return torch.from_numpy(out).view(g.shape)
