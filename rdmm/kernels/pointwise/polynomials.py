"""Correlation, and the correlation ratio with polynomials (model (31) and (54)), compiled by numba.

Both are functions of the moments of the intensities: one pass sums these, another writes the gradient, a polynomial of the two intensities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import prange

from rdmm.kernels.compiled import compiled
from rdmm.kernels.pointwise.channels import compare
from rdmm.types import Tensor

VOXELS_OF_A_TASK = 4096
"""Fixed, so that sums do not depend on the number of threads. Not measured."""

SMALLEST_SHARE = 1e-6
"""Combinations of powers whose variance is less than this share of the largest one are left out: images of few intensities have such."""

MAX_POWERS = 12
"""Twice the largest degree of a polynomial."""


@compiled(parallel=True)
def _sum_products(a, b, w, x0, y0, out):  # type: ignore[no-untyped-def]
    """Sums of w, w x, w y, w x^2, w y^2 and w x y into out (tasks, 6), x = a - x0 and y = b - y0. An empty w is 1 everywhere."""
    for task in prange(len(out)):
        n = sx = sy = xx = yy = xy = 0.0
        for v in range(task * VOXELS_OF_A_TASK, min((task + 1) * VOXELS_OF_A_TASK, a.size)):
            weight = np.float64(w[v]) if w.size else 1.0
            x, y = a[v] - x0, b[v] - y0
            wx, wy = weight * x, weight * y
            n += weight
            sx += wx
            sy += wy
            xx += wx * x
            yy += wy * y
            xy += wx * y
        out[task, 0], out[task, 1], out[task, 2], out[task, 3], out[task, 4], out[task, 5] = n, sx, sy, xx, yy, xy


@compiled(parallel=True)
def _sum_moments(a, b, w, line, degree, out):  # type: ignore[no-untyped-def]
    """Sums of w x^i y^j into out (tasks, 4, MAX_POWERS + 1), x = line[0, 0] (a - line[0, 1]), y likewise of b.

    Rows: x^i and y^i to twice the degree, x^i y and x y^i to the degree. An empty w is 1 everywhere.
    """
    for task in prange(len(out)):
        sums = np.zeros((4, MAX_POWERS + 1))
        for v in range(task * VOXELS_OF_A_TASK, min((task + 1) * VOXELS_OF_A_TASK, a.size)):
            weight = np.float64(w[v]) if w.size else 1.0
            x, y = line[0, 0] * (a[v] - line[0, 1]), line[1, 0] * (b[v] - line[1, 1])
            px = py = weight
            for i in range(degree + 1):
                sums[0, i] += px
                sums[1, i] += py
                sums[2, i] += px * y
                sums[3, i] += py * x
                px *= x
                py *= y
            for i in range(degree + 1, 2 * degree + 1):
                sums[0, i] += px
                sums[1, i] += py
                px *= x
                py *= y
        out[task] = sums


@compiled(parallel=True)
def _gradient(a, b, w, line, by_x, by_y, linear, factor, tasks, out):  # type: ignore[no-untyped-def]
    """w (factor (F(x) - y) F'(x) + linear x - H(y)) into out, F and H the polynomials with coefficients ``by_x`` and ``by_y``."""
    degree = len(by_x) - 1
    for task in prange(tasks):
        for v in range(task * VOXELS_OF_A_TASK, min((task + 1) * VOXELS_OF_A_TASK, a.size)):
            x, y = line[0, 0] * (a[v] - line[0, 1]), line[1, 0] * (b[v] - line[1, 1])
            f = h = slope = 0.0
            for i in range(degree, -1, -1):
                slope = slope * x + f
                f = f * x + by_x[i]
                h = h * y + by_y[i]
            weight = np.float64(w[v]) if w.size else 1.0
            out[v] = weight * (factor * (f - y) * slope + linear * x - h)


@dataclass(frozen=True)
class Channel:
    """One channel of two images, flat, with the weights of the voxels (empty: 1 everywhere)."""

    a: np.ndarray
    b: np.ndarray
    w: np.ndarray

    @property
    def tasks(self) -> int:
        return -(-self.a.size // VOXELS_OF_A_TASK)

    def means(self, line: np.ndarray, degree: int) -> np.ndarray:
        """Means of the products of powers of the images after the maps ``line``, in the order of ``_sum_moments``."""
        parts = np.empty((self.tasks, 4, MAX_POWERS + 1))
        _sum_moments(self.a, self.b, self.w, line, degree, parts)
        sums = parts.sum(0)
        return sums / sums[0, 0]

    def centered(self) -> tuple[np.ndarray, np.ndarray, float]:
        """The maps (2, 2) that make the means 0, as ``line`` of ``_sum_moments``; the variances (2,); the covariance."""
        origin = np.array([self.a[0], self.b[0]], np.float64)  # about a value of its own, a constant image has a variance of exactly 0
        parts = np.empty((self.tasks, 6))
        _sum_products(self.a, self.b, self.w, *origin, parts)
        whole, *sums = parts.sum(0)
        x, y, xx, yy, xy = (s / whole for s in sums)
        line = np.stack([np.ones(2), origin + np.array([x, y])], 1)
        return line, np.maximum([xx - x * x, yy - y * y], 0.0), float(xy - x * y)

    def write_gradient(self, out: np.ndarray, line: np.ndarray, by_x: np.ndarray, by_y: np.ndarray, linear: float, factor: float) -> None:
        """The gradient by a of a mean over voxels, whose gradient by x of one voxel is as in ``_gradient``."""
        scale = line[0, 0] / (float(self.w.sum(dtype=np.float64)) if self.w.size else self.a.size)
        _gradient(self.a, self.b, self.w, line, by_x, by_y * scale, linear * scale, factor * scale, self.tasks, out)


def _correlation(channel: Channel, floor: float, out: np.ndarray | None) -> float:
    """1 - (cov^2 + floor) / (var_a var_b + floor); its gradient by a into ``out`` unless that is None."""
    line, (va, vb), cov = channel.centered()
    whole = va * vb + floor
    share = (cov**2 + floor) / whole
    if out is not None:
        channel.write_gradient(out, line, np.zeros(2), np.array([0.0, 2 * cov / whole]), 2 * share * vb / whole, 0.0)
    return 1 - share


def _ratio(channel: Channel, floor: float, degree: int, out: np.ndarray | None) -> float:
    """Mean of the shares of the variance of each image that a polynomial of the other leaves; its gradient by a into ``out`` unless None.

    Means, variances and coefficients are constants for the gradient: the value does not change with them to first order.
    """
    line, variances, _ = channel.centered()
    line[:, 0] = 1 / np.sqrt(variances + floor)
    x, y, mixed_x, mixed_y = channel.means(line, degree)
    (f, rest_of_y), (h, rest_of_x) = _fit(x, mixed_x, y, degree), _fit(y, mixed_y, x, degree)
    vx, vy = x[2] + floor, y[2] + floor
    left = (rest_of_x + floor) / vx
    if out is not None:
        channel.write_gradient(out, line, f, h / vx, (1 - left) / vx, 1 / vy)
    return float(left + (rest_of_y + floor) / vy) / 2


def _fit(powers: np.ndarray, mixed: np.ndarray, other: np.ndarray, degree: int) -> tuple[np.ndarray, float]:
    """Coefficients (degree + 1,) of the polynomial of x that is nearest to y, and the mean square that it leaves of y.

    Args:
        powers, mixed, other: means of x^i, of x^i y, and of y^i.
    """
    i = np.arange(1, degree + 1)
    gram = powers[i[:, None] + i] - np.outer(powers[i], powers[i])
    right = mixed[i] - powers[i] * mixed[0]
    values, vectors = np.linalg.eigh(gram)
    independent = values > SMALLEST_SHARE * values[-1]
    c = vectors[:, independent] @ (right @ vectors[:, independent] / values[independent])
    return np.array([-c @ powers[i], *c]), max(float(other[2] - 2 * c @ right + c @ gram @ c), 0.0)


def correlation(a: Tensor, b: Tensor, weight: Tensor | None, floor: float) -> Tensor:
    """(b,) mean over channels of 1 - (cov^2 + floor) / (var_a var_b + floor), CPU; gradients to a and b.

    a, b: (b, c, *s); weight: (b, 1, *s) or None.
    """
    return compare(lambda a, b, w, out: _correlation(Channel(a, b, w), floor, out), a, b, weight)


def correlation_ratio(a: Tensor, b: Tensor, weight: Tensor | None, floor: float, degree: int) -> Tensor:
    """(b,) mean over channels of the correlation ratio, model (54), with polynomials of up to ``degree``; as ``correlation``."""
    return compare(lambda a, b, w, out: _ratio(Channel(a, b, w), floor, degree, out), a, b, weight)
