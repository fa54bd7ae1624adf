"""Differences of the fourth order, model (4)."""

from __future__ import annotations

from functools import lru_cache

import torch

from rdmm.spatial.grid import Grid
from rdmm.spatial.ops import along
from rdmm.types import Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def difference_matrix(n: int, h: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, n): differences along an axis of n voxels of size h. Fourth order; central beside the walls, one-sided at them."""
    d = torch.zeros(n, n, dtype=torch.float64)
    if n > 1:
        d[0, :2], d[-1, -2:] = torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0])
    for i in range(1, n - 1):
        d[i, i - 1 : i + 2] = torch.tensor([-0.5, 0, 0.5])
    for i in range(2, n - 2):
        d[i, i - 2 : i + 3] = torch.tensor([1 / 12, -2 / 3, 0, 2 / 3, -1 / 12], dtype=torch.float64)
    return (d / h).to(device, dtype)


def _matrix(f: Tensor, axis: int, grid: Grid) -> Tensor:
    return difference_matrix(grid.shape[axis], grid.spacing[axis], f.dtype, f.device)


def partial(f: Tensor, axis: int, grid: Grid) -> Tensor:
    """d f / d x_axis, model (4); ``f`` is (b, c, *s)."""
    return along(_matrix(f, axis, grid), f, 2 + axis)


def partial_transpose(f: Tensor, axis: int, grid: Grid) -> Tensor:
    """The transpose of ``partial``, model (4): -d f / d x_axis inside the grid, for an f that is 0 outside the grid."""
    return along(_matrix(f, axis, grid).mT, f, 2 + axis)


def jacobian(f: Tensor, grid: Grid) -> list[Tensor]:
    """[d_j f for each axis j], each of the shape of ``f``."""
    return [partial(f, j, grid) for j in range(grid.ndim)]
