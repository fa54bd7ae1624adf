"""Log-sum-exp between two clouds of points, compiled by numba for float32 on CPU.

Points are sorted into tiles of neighbors (``sort_into_tiles``). For each tile of outputs, the tile of inputs with the highest bound gives a
first estimate of the largest exponent; tiles whose bound is less than 2^-CUTOFF times it are skipped.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import prange

from rdmm.kernels.compiled import FAST, compiled
from rdmm.kernels.simd import LOG2E, MIN_EXPONENT, MIN_VALUE, exp2, f32
from rdmm.kernels.softmin_grid import CUTOFF
from rdmm.types import Tensor

TILE = 64
"""Points in a tile. Not measured."""


def sort_into_tiles(x: np.ndarray) -> np.ndarray:
    """Indices that sort points x (n, d) into tiles of neighbors: the leaves of a k-d tree that splits the longest edge at its median."""
    parts, done = [np.arange(len(x))], []
    while parts:
        part = parts.pop()
        if len(part) <= TILE:
            done.append(part)
            continue
        axis = int(np.argmax(np.ptp(x[part], axis=0)))
        half = TILE * (-(-len(part) // TILE) // 2)
        sides = np.argpartition(x[part, axis], half)
        parts += [part[sides[half:]], part[sides[:half]]]
    return np.concatenate(done)


@compiled()
def _boxes(x, h, low, high, highest):  # type: ignore[no-untyped-def]
    """Bounds of each tile of points x (d, n): box (d, tiles) and largest h."""
    d, n = x.shape
    for k in range(low.shape[1]):
        highest[k] = MIN_VALUE
        for j in range(k * TILE, min(k * TILE + TILE, n)):
            highest[k] = max(highest[k], h[j])
            for a in range(d):
                low[a, k] = x[a, j] if j == k * TILE else min(low[a, k], x[a, j])
                high[a, k] = x[a, j] if j == k * TILE else max(high[a, k], x[a, j])


@compiled(inline="always", fastmath=FAST)
def _exponents(x, y, h, first, last, c, e):  # type: ignore[no-untyped-def]
    """e[j, w] = h_j - c |x_w - y_j|^2 for the inputs of a tile."""
    for j in range(first, last):
        for w in range(TILE):
            e[j - first, w] = h[j]
        for a in range(x.shape[0]):
            for w in range(TILE):
                r = x[a, w] - y[a, j]
                e[j - first, w] -= c * r * r


@compiled(inline="always", fastmath=FAST)
def _bounds(xl, xh, yl, yh, highest, t, c, bound):  # type: ignore[no-untyped-def]
    """Compute, for each tile of inputs, an upper bound of its exponents at points of tile t; return the tile with the highest bound."""
    best = 0
    for k in range(len(bound)):
        gap = f32(0)
        for a in range(xl.shape[0]):
            apart = max(f32(0), max(xl[a, t] - yh[a, k], yl[a, k] - xh[a, t]))
            gap += apart * apart
        bound[k] = highest[k] - c * gap
        if bound[k] > bound[best]:
            best = k
    return best


@compiled(inline="always", fastmath=FAST)
def _add_tile(e, count, top, total, moment):  # type: ignore[no-untyped-def]
    """Add a tile's terms: update the largest exponents, rescale the sums so far to them, and add the tile's powers."""
    for w in range(TILE):
        new = top[w]
        for j in range(count):
            new = max(new, e[j, w])
        scale = exp2(max(top[w] - new, MIN_EXPONENT))
        top[w] = new
        total[w] *= scale
        for a in range(moment.shape[0]):
            moment[a, w] *= scale
    for j in range(count):
        for w in range(TILE):
            e[j, w] = exp2(max(e[j, w] - top[w], MIN_EXPONENT))
            total[w] += e[j, w]


@compiled(parallel=True, fastmath=FAST)
def _log_sum(x, y, h, c, xl, xh, yl, yh, highest, out, mean):  # type: ignore[no-untyped-def]
    """out_i = log2 sum_j 2^(h_j - c |x_i - y_j|^2), and, where ``mean`` (d, n) is not empty, the means of y under the same weights."""
    d, n = x.shape
    m, tiles = y.shape[1], len(highest)
    for t in prange(xl.shape[1]):
        points, bound, e = np.empty((d, TILE), np.float32), np.empty(tiles, np.float32), np.empty((TILE, TILE), np.float32)
        top, total, moment = np.full(TILE, MIN_VALUE), np.zeros(TILE, np.float32), np.zeros((d, TILE), np.float32)
        for w in range(TILE):
            for a in range(d):
                points[a, w] = x[a, min(t * TILE + w, n - 1)]
        best = _bounds(xl, xh, yl, yh, highest, t, c, bound)
        _exponents(points, y, h, best * TILE, min(best * TILE + TILE, m), c, e)
        for j in range(min(TILE, m - best * TILE)):
            for w in range(TILE):
                top[w] = max(top[w], e[j, w])
        least = top.min() - CUTOFF
        for k in range(tiles):
            if bound[k] < least:
                continue
            count = min(TILE, m - k * TILE)
            _exponents(points, y, h, k * TILE, k * TILE + count, c, e)
            _add_tile(e, count, top, total, moment)
            for j in range(count if mean.size else 0):
                for a in range(d):
                    for w in range(TILE):
                        moment[a, w] += e[j, w] * y[a, k * TILE + j]
        for w in range(min(TILE, n - t * TILE)):
            out[t * TILE + w] = top[w] + np.log2(total[w])
            for a in range(d if mean.size else 0):
                mean[a, t * TILE + w] = moment[a, w] / total[w]


def log_sum(x: Tensor, y: Tensor, h: Tensor, eps: float, mean: bool = False) -> tuple[Tensor, Tensor | None]:
    """log sum_j exp(h_j - |x_i - y_j|^2 / (2 eps)), (n,), and the means of y under these weights, (n, d), or None.

    x (n, d), y (m, d), h (m,) float32 on CPU, sorted by ``sort_into_tiles``.
    """
    px, py = (np.ascontiguousarray(p.detach().numpy().T) for p in (x, y))
    ph = h.detach().contiguous().numpy() * LOG2E
    boxes = []
    for p, q in ((px, np.zeros(px.shape[1], np.float32)), (py, ph)):
        tiles = -(-p.shape[1] // TILE)
        box = np.empty((len(p), tiles), np.float32), np.empty((len(p), tiles), np.float32), np.empty(tiles, np.float32)
        _boxes(p, q, *box)
        boxes.append(box)
    out, means = np.empty(len(x), np.float32), np.empty((len(px), len(x) if mean else 0), np.float32)
    (xl, xh, _), (yl, yh, highest) = boxes
    _log_sum(px, py, ph, f32(0.5 / eps) * LOG2E, xl, xh, yl, yh, highest, out, means)
    return torch.from_numpy(out * f32(math.log(2))), torch.from_numpy(means.T) if mean else None
