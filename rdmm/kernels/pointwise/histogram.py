"""Normalized mutual information of a joint histogram (model (33)), compiled by numba: one pass fills the histogram, another its gradient.

Each voxel lies, by quadratic B-splines of its two intensities, in three by three bins. Voxels without weight are left out.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from rdmm.kernels.compiled import compiled
from rdmm.kernels.pointwise.channels import compare
from rdmm.types import Tensor

TASKS = 16
"""Parts of the image with a histogram of their own. Fixed, so that sums do not depend on the number of threads. Not measured."""

SMALLEST_RANGE, SMALLEST_SHARE, SMALLEST_ENTROPY = 1e-12, 1e-12, 1e-6
"""Below these, the range of the intensities, the share of a bin in a logarithm, and the joint entropy are taken to be this much."""


@compiled(inline="always")
def _first_bin(t, bins):  # type: ignore[no-untyped-def]
    """First of the three bins of a position in bins, and where the position is in the one in the middle, -0.5 to 0.5."""
    center = np.rint(t)
    return min(max(int(center) - 1, 0), bins - 3), t - center


@compiled(inline="always")
def _shares(r):  # type: ignore[no-untyped-def]
    """Shares of a voxel in its three bins; ``_slopes``: their derivatives."""
    return 0.5 * (0.5 - r) ** 2, 0.75 - r * r, 0.5 * (0.5 + r) ** 2


@compiled(inline="always")
def _slopes(r):  # type: ignore[no-untyped-def]
    return r - 0.5, -2 * r, r + 0.5


@compiled(parallel=True)
def _fill(a, b, w, line, out):  # type: ignore[no-untyped-def]
    """Histograms (tasks, bins, bins) of the positions line[0, 0] a + line[0, 1] and, likewise, of b. An empty w is 1 everywhere."""
    tasks, bins, _ = out.shape
    for task in prange(tasks):
        for v in range(task * a.size // tasks, (task + 1) * a.size // tasks):
            weight = np.float64(w[v]) if w.size else 1.0
            if weight > 0:
                i, r = _first_bin(line[0, 0] * a[v] + line[0, 1], bins)
                j, s = _first_bin(line[1, 0] * b[v] + line[1, 1], bins)
                p, q = _shares(r), _shares(s)
                for k in range(3):
                    for m in range(3):
                        out[task, i + k, j + m] += weight * p[k] * q[m]


@compiled(parallel=True)
def _by_positions(a, b, w, line, table, out, sums):  # type: ignore[no-untyped-def]
    """The gradient by the positions of a into ``out``, for that by the bins in ``table``; per task, its sum and that times a."""
    tasks, bins = len(sums), len(table)
    for task in prange(tasks):
        total = moment = 0.0
        for v in range(task * a.size // tasks, (task + 1) * a.size // tasks):
            weight, g = np.float64(w[v]) if w.size else 1.0, 0.0
            if weight > 0:
                i, r = _first_bin(line[0, 0] * a[v] + line[0, 1], bins)
                j, s = _first_bin(line[1, 0] * b[v] + line[1, 1], bins)
                p, q = _slopes(r), _shares(s)
                for k in range(3):
                    for m in range(3):
                        g += p[k] * q[m] * table[i + k, j + m]
            out[v] = weight * g
            total += weight * g
            moment += weight * g * a[v]
        sums[task, 0], sums[task, 1] = total, moment


def _range(x: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    counted = x[w > 0] if w.size else x
    return float(counted.min()), float(counted.max())


def _entropy(p: np.ndarray) -> float:
    return -float((p * np.log(np.maximum(p, SMALLEST_SHARE))).sum())


def _logs(p: np.ndarray) -> np.ndarray:
    """The derivatives of the entropy by the shares p."""
    return -np.log(np.maximum(p, SMALLEST_SHARE)) - (p > SMALLEST_SHARE)


def _measure(a: np.ndarray, b: np.ndarray, w: np.ndarray, bins: int, out: np.ndarray | None) -> float:
    """2 - (H(a) + H(b)) / H(a, b) of flat images; its gradient by a into ``out`` unless that is None."""
    edges = [_range(x, w) for x in (a, b)]
    slopes = [(bins - 3) / max(high - low, SMALLEST_RANGE) for low, high in edges]
    line = np.array([[s, 1 - low * s] for s, (low, _) in zip(slopes, edges, strict=True)])
    parts = np.zeros((TASKS, bins, bins))
    _fill(a, b, w, line, parts)
    joint = parts.sum(0)
    mass = joint.sum()
    joint /= mass
    rows, columns = joint.sum(1), joint.sum(0)
    both = max(_entropy(joint), SMALLEST_ENTROPY)
    share = (_entropy(rows) + _entropy(columns)) / both
    if out is not None:
        table = share * _logs(joint) * (both > SMALLEST_ENTROPY) - _logs(rows)[:, None] - _logs(columns)
        _write_gradient(a, b, w, line, (table - (table * joint).sum()) / (both * mass), edges[0], out)
    return 2 - share


def _write_gradient(
    a: np.ndarray, b: np.ndarray, w: np.ndarray, line: np.ndarray, table: np.ndarray, edges: tuple[float, float], out: np.ndarray
) -> None:
    """The gradient by a, for that by the bins in ``table``. The range of the bins moves with the lowest and the highest voxels."""
    sums = np.empty((TASKS, 2))
    _by_positions(a, b, w, line, table, out, sums)
    slope, (low, high) = line[0, 0], edges
    out *= a.dtype.type(slope)
    if high - low > SMALLEST_RANGE:
        total, moment = sums.sum(0)
        by_high = -slope * (moment - total * low) / (high - low)
        for edge, gradient in ((low, -slope * total - by_high), (high, by_high)):
            at = (a == edge) & (w > 0) if w.size else a == edge
            out[at] += a.dtype.type(gradient / at.sum())


def mutual_information(a: Tensor, b: Tensor, weight: Tensor | None, bins: int) -> Tensor:
    """(b,) mean over channels of 2 - (H(a) + H(b)) / H(a, b), CPU; gradients to a and b.

    a, b: (b, c, *s); weight: (b, 1, *s) or None; bins: of each image, between its minimum and its maximum where the weight is not 0.
    """
    return compare(lambda a, b, w, out: _measure(a, b, w, bins, out), a, b, weight)
