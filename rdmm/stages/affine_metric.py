"""The metric of the affine search: how much each of its parameters changes what is moved.

Parameters differ in this by orders of magnitude, and act together. In coordinates in which all changes count alike, a search needs half as
many evaluations. The metric is that of Gauss and Newton, whatever the similarity: its scale does not matter.
"""

from __future__ import annotations

import numpy as np
import torch

from rdmm.spatial import ops
from rdmm.spatial.image import Image
from rdmm.types import Tensor

MAX_POINTS = 4096
"""Voxels, or points of a shape, that the metric is summed over: it need not be exact. Not measured."""

FLOOR = 1e-3
"""Added to the metric, whose mean over its diagonal is 1, so that a change that an image does not show is not taken to be free. Not
measured."""


def image_metric(moved: Image, matrix: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Mean products (k, k) of the changes of the moved image by each two of the k parameters; each channel's have a trace of k.

    Args:
        moved: the moving image on the fixed grid.
        matrix: (d+1, d+1), by which it was moved, between world millimeters.
        rates: (k, d, d+1) derivatives of the matrix by the parameters.
    """
    grid, d = moved.grid, moved.grid.ndim
    step = max(1, moved.data[0, 0].numel() // MAX_POINTS)
    weight = torch.ones_like(moved.data) if moved.mask is None else moved.mask.expand_as(moved.data)
    slopes = torch.stack(ops.jacobian(moved.data, grid)) * weight.sqrt()
    slopes_of = slopes.flatten(3)[..., ::step].flatten(1, 2).movedim(1, 0).double().cpu().numpy()  # (channels, d, n)
    points = grid.identity(moved.data.double()).flatten(2)[0, :, ::step].cpu().numpy()
    before = np.linalg.inv(matrix @ grid.frame)[:d, :d] @ rates @ grid.frame  # of a change of the map, as a map that comes before it
    homogeneous = _with_ones(points)
    by_entries = [(slope[:, None] * homogeneous).reshape(d * (d + 1), -1) for slope in slopes_of]
    flat = before.reshape(len(rates), -1)
    return np.mean([_scaled(flat @ _products(changes) @ flat.T) for changes in by_entries], 0)


def shape_metric(points: Tensor, rates: np.ndarray) -> np.ndarray:
    """Products (k, k) of the moves of points (d, n) by each two of the k parameters, with a trace of k; ``rates`` as in image_metric."""
    step = max(1, points.shape[1] // MAX_POINTS)
    moments = _products(_with_ones(points[:, ::step].detach().double().cpu().numpy()))
    return _scaled(sum(rates[:, i] @ moments @ rates[:, i].T for i in range(len(points))))


def whitening(metric: np.ndarray) -> Tensor:
    """The matrix (k, k) from coordinates in which the metric is the identity, up to FLOOR, to the parameters."""
    factor = np.linalg.cholesky(metric + FLOOR * np.eye(len(metric)))
    return torch.as_tensor(np.linalg.inv(factor).T.copy())


def _with_ones(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones_like(points[:1])])


def _products(x: np.ndarray) -> np.ndarray:
    """x x^T of x (m, n) by sums that do not depend on the number of threads, as those of a matrix product would."""
    return np.einsum("in,jn->ij", x, x)


def _scaled(products: np.ndarray) -> np.ndarray:
    return products * len(products) / max(np.trace(products), np.finfo(np.float64).tiny)
