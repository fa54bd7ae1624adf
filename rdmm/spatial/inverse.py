"""Inverses of transforms: of affine maps in closed form, of warps point by point."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from rdmm.spatial.folds import non_diffeomorphic_volume
from rdmm.spatial.grid import Grid
from rdmm.spatial.ops import determinant
from rdmm.spatial.transform import Affine, Dense, Framed, Placed, Transform, compose_all, flat
from rdmm.types import DivergenceError, InputError, Tensor

log = logging.getLogger(__name__)

POINTS_AT_ONCE = 2**17
"""Points that are searched at once: their coordinates and Jacobians stay in the processor's cache. Not measured."""

TOLERANCE = 1e-4
"""Distance, in voxels, at which a point is found."""

MAX_RESIDUAL = 0.5
"""Distance, in voxels, from which on a point was not found."""

MAX_LOST = 1e-3
"""Share of the points that may be lost, in folds, without an error."""

MAX_FOLDED_PERCENT = 0.1
"""Percentage of cells that may fold, with a warning. The map still reaches every point there, three times. Not measured."""

ITERATIONS = 50
"""Largest number of Newton's steps. Most points need 2 to 4."""

STARTS = 2
"""Steps of the fixed-point iteration before Newton's: each takes a quarter of the time of one of his. Not measured."""


@dataclass(frozen=True, eq=False)
class InverseOfDense:
    """y with T(y) = x, for a T that is given as a Dense; by Newton's method at each point, to TOLERANCE voxels.

    Where T is the identity outside its grid, as ITK's warps are, so is the inverse for all x that no point of the grid goes to.
    """

    forward: Dense

    @property
    def ndim(self) -> int:
        return self.forward.ndim

    def __call__(self, x: Tensor) -> Tensor:
        """y (1, d, *t) of x (1, d, *t), in domain units of the grid of ``forward``.

        Raises:
            DivergenceError: more than MAX_LOST of the points inside the grid are not found.
        """
        grid = self.forward.grid
        extended = Dense(self.forward.displacement.detach().double(), grid)
        pieces = x.detach().double().flatten(2).split(POINTS_AT_ONCE, 2)
        found, off = zip(*(_solve(extended, piece) for piece in pieces), strict=True)
        y = torch.cat(found, 2).view(x.shape).to(x)
        _require_found(torch.cat(off), x.shape[2:].numel())
        return y if self.forward.outside == "edge" else torch.where(grid.contains(y) | grid.contains(x), y, x)


def _require_found(off: Tensor, count: int) -> None:
    """Raise DivergenceError if too many of ``count`` points are not found; ``off`` is how far each of these is off, in voxels."""
    if len(off) > MAX_LOST * count:
        raise DivergenceError(
            f"the inverse of a warp is not found at {len(off)} points (up to {float(off.max()):.2g} voxels off): its gradients are too"
            " steep; register again with a stronger regularizer"
        )


def _solve(forward: Dense, y: Tensor) -> tuple[Tensor, Tensor]:
    """x (1, d, n) with forward(x) = y, and how far those (k,) are off, in voxels, that are not found inside the grid.

    A step is halved where it does not lead nearer.
    """
    grid = forward.grid
    h = torch.tensor(grid.spacing, dtype=y.dtype).view(1, -1, 1)
    x = y
    for _ in range(STARTS):
        x = x - (forward(x) - y)
    error = forward(x) - y
    size = (error / h).square().sum(1).sqrt()[0]
    open_ = (size > TOLERANCE).nonzero()[:, 0]
    scale = torch.ones_like(size)
    for _ in range(ITERATIONS):
        if not len(open_):
            break
        at, wrong = x[:, :, open_], error[:, :, open_]
        trial = at - scale[open_] * _newton_step(forward, at, wrong, wrong + y[:, :, open_], h)
        found = forward(trial) - y[:, :, open_]
        nearer = (found / h).square().sum(1).sqrt()[0]
        better = nearer < size[open_]
        good = open_[better]
        x[:, :, good], error[:, :, good], size[good] = trial[:, :, better], found[:, :, better], nearer[better]
        scale[good] = (2 * scale[good]).clamp_max(1)
        scale[open_[~better]] /= 2
        open_ = open_[size[open_] > TOLERANCE]
    return x, size[open_[(size[open_] > MAX_RESIDUAL) & grid.contains(x[:, :, open_])[0, 0]]]


def _newton_step(forward: Dense, x: Tensor, error: Tensor, there: Tensor, h: Tensor) -> Tensor:
    """J^-1 error (1, d, n) by Cramer's rule, with J the differences of ``forward`` over half a voxel; ``there`` is forward(x)."""
    d = x.shape[1]
    columns = []
    for j in range(d):
        step = torch.zeros_like(h)
        step[:, j] = h[:, j] / 2
        columns.append((forward(x + step) - there) / step[:, j : j + 1])
    det = determinant(columns)
    det = torch.where(det.abs() < 1e-3, 1e-3, det)
    return torch.stack([determinant([error if k == j else c for k, c in enumerate(columns)]) / det for j in range(d)], 1)


def inverse(transform: Transform, name: str) -> Transform:
    """The inverse of a map: of its parts, in reverse order.

    Args:
        transform: affine maps and warps, in one frame of points.
        name: what messages call it.

    Raises:
        DivergenceError: a warp folds in more than a few cells, so that it has no inverse.
        InputError: a map that is neither.
    """
    return compose_all(_inverse_of_part(part, name) for part in reversed(flat(transform)))


def _inverse_of_part(part: Transform, name: str) -> Transform:
    if isinstance(part, Affine):
        return Affine(torch.linalg.inv(part.matrix.double()))
    if isinstance(part, Placed | Framed):
        return type(part)(inverse(part.transform, name), part.grid)
    if isinstance(part, InverseOfDense):
        return part.forward
    if not isinstance(part, Dense):
        raise InputError(f"{name}: the inverse of a {type(part).__name__} is not known; give warps and affine maps")
    _require_few_folds(part.displacement, part.grid, name)
    return InverseOfDense(part)


def _require_few_folds(u: Tensor, grid: Grid, name: str) -> None:
    folded = non_diffeomorphic_volume(u, grid)["folded_cells_percent"]
    count = round(folded / 100 * math.prod(n - 1 for n in grid.shape))
    if folded > MAX_FOLDED_PERCENT:
        raise DivergenceError(
            f"{name}: {count} cells fold ({folded:.3g} %), so the map has no inverse there; rdmm jacobian shows where:"
            " register again with a stronger regularizer, or for a run take its InverseWarp: [RUN,1]"
        )
    if folded > 0:
        log.warning("%s: %d cells fold (%.2g %%): there the inverse is one of several points", name, count, folded)
