"""Vectors and symmetric tensors turn with the anatomy: by the rotation in the local Jacobian of the map (finite strain)."""

from __future__ import annotations

import numpy as np
import torch

from rdmm.io.formats.stack import Stack
from rdmm.io.nifti import TENSOR_INTENT
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Transform, displacement
from rdmm.types import ConfigError, Tensor, option

UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
"""Places of the six numbers of a tensor for FSL, and for ITK in other files than NIfTI: xx, xy, xz, yy, yz, zz."""

LOWER = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))
"""Their places in NIfTI files of intent 1005: xx, yx, yy, zx, zy, zz."""

MIN_DETERMINANT = 1e-3
"""Where the Jacobian determinant is smaller, the map folds, and nothing is turned. Not measured."""


def turned(values: Tensor, transform: Transform, grid: Grid, stack: Stack) -> Tensor:
    """Vectors v or tensors D, (1, c, *s), moved onto ``grid``, turned: R^T v, R^T D R, with J = R S (polar).

    Args:
        values: d numbers a voxel for vectors, or 6 for tensors in 3D.
        transform: the map in domain units of ``grid``, of which J is the Jacobian.
        grid: the grid of the result.
        stack: the image from which the values come: its file says along which axes they are, see ``_frame``.

    Raises:
        ConfigError: another number of values.
    """
    d, count = grid.ndim, values.shape[1]
    if count != d and not (count == 6 and d == 3):
        raise ConfigError(
            f"{option('reorient')}: {stack.name} holds {count} numbers a voxel on a {d}D grid; {d} of a vector, or 6 of a tensor in 3D, are"
            " expected"
        )
    there, here = (torch.as_tensor(_frame(g, stack)) for g in (stack.grid, grid))
    turn = torch.einsum("ab,cb...,cd->ad...", torch.linalg.inv(here), _rotations(transform, grid), there).to(values)
    if count == d:
        return torch.einsum("ab...,zb...->za...", turn, values)
    places = LOWER if stack.storage.intent == TENSOR_INTENT else UPPER
    tensor = torch.stack([values[0, _number(places, i, j)] for i in range(3) for j in range(3)]).view(3, 3, *values.shape[2:])
    whole = torch.einsum("ab...,bc...,dc...->ad...", turn, tensor, turn)
    return torch.stack([whole[i, j] for i, j in places])[None]


def _number(places: tuple[tuple[int, int], ...], i: int, j: int) -> int:
    return next(k for k, place in enumerate(places) if place in ((i, j), (j, i)))


def _frame(grid: Grid, stack: Stack) -> np.ndarray:
    """(d, d): the axes of the numbers of a vector, in the world. ITK's are L, P, S. FSL's, four axes in NIfTI, are those of the voxels, of
    which the first is turned where the voxels are right-handed."""
    if stack.is_vector:
        return np.diag([-1.0, -1.0, 1.0][: grid.ndim])
    axes = grid.directions
    return axes @ np.diag([-1.0 if np.linalg.det(axes) > 0 else 1.0, *[1.0] * (grid.ndim - 1)])


def _rotations(transform: Transform, grid: Grid) -> Tensor:
    """R (d, d, *s) in the world at each voxel."""
    u = displacement(transform, grid, torch.zeros(1, dtype=torch.float64))
    jacobian = torch.stack([column[0] for column in ops.map_jacobian(u, grid)], 1)
    axes = torch.as_tensor(grid.directions)
    return polar_rotation(torch.einsum("ab,bc...,cd->ad...", axes, jacobian, torch.linalg.inv(axes)))


def polar_rotation(matrix: Tensor, iterations: int = 60) -> Tensor:
    """R of M = R S, S symmetric and positive, of matrices (d, d, *s), by Newton's iteration R <- (R + R^-T) / 2 (Higham 1986)."""
    d = len(matrix)
    one = torch.eye(d, dtype=matrix.dtype).view(d, d, *(1,) * (matrix.ndim - 2))
    r = torch.where(_determinant(matrix) > MIN_DETERMINANT, matrix, one)
    for _ in range(iterations):
        following = (r + _cofactors(r) / _determinant(r)) / 2
        change = float((following - r).abs().max())
        r = following
        if change < 1e-12:
            break
    return r


def _determinant(m: Tensor) -> Tensor:
    return (m[:, 0] * _cofactors(m)[:, 0]).sum(0)


def _cofactors(m: Tensor) -> Tensor:
    """det(M) M^-T."""
    if len(m) == 2:
        return torch.stack([torch.stack([m[1, 1], -m[1, 0]]), torch.stack([-m[0, 1], m[0, 0]])])
    a, b, c = m.unbind(1)
    return torch.stack([torch.linalg.cross(x, y, dim=0) for x, y in ((b, c), (c, a), (a, b))], 1)
