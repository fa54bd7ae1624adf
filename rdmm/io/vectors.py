"""Helpers for all transform formats: displacement vectors and matrices in LPS and RAS, and the grids that a format needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rdmm.io.files import require_file, require_finite_result, write_atomically
from rdmm.io.formats.choice import read_raw
from rdmm.spatial.grid import Grid, is_invertible
from rdmm.spatial.transform import Affine, Dense, Placed, Transform, displacement, flat, framed
from rdmm.types import ConfigError, InputError, OutputError, Tensor, option


def ras_to_lps(d: int) -> np.ndarray:
    """(d+1, d+1) matrix that converts RAS to LPS, and back."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) if d == 3 else np.diag([-1.0, -1.0, 1.0])


def to_itk_affine(matrix: np.ndarray) -> np.ndarray:
    """ITK's d * d + d parameters of a RAS matrix (d+1, d+1), for the center 0."""
    d = len(matrix) - 1
    m = ras_to_lps(d) @ matrix @ ras_to_lps(d)
    return np.concatenate([m[:d, :d].ravel(), m[:d, d]])


def require_itk_grid(grid: Grid, what: str) -> None:
    """Raise OutputError for a sheared grid, which ITK's origin, spacing and direction cannot hold."""
    axes = grid.directions
    if np.abs(axes.T @ axes - np.eye(grid.ndim)).max() > 1e-3:
        raise OutputError(
            f"{what}: its axes are sheared, and ITK files (warps) cannot hold that; resample it to a grid with right angles first"
        )


def world_displacement(u: Tensor, grid: Grid) -> np.ndarray:
    """u (1, d, *s) in domain units -> (*s, d) in RAS millimeters."""
    vectors = u.detach().cpu().double().numpy()[0]
    return np.moveaxis(np.tensordot(grid.frame[:-1, :-1], vectors, axes=1), 0, -1)


def world_vectors(transform: Transform, grid: Grid) -> np.ndarray:
    """T(x) - x at the voxels of ``grid``, (*s, d) in RAS millimeters."""
    u = displacement(framed(transform, grid), grid, torch.zeros(1, dtype=torch.float64))
    return world_displacement(u, grid)


def from_vectors(vectors: np.ndarray, grid: Grid) -> Placed:
    """The map of world millimeters x -> x + v(x), with v (*s, d) given at the voxels of ``grid``; the identity outside the grid."""
    d = grid.ndim
    u = np.tensordot(np.linalg.inv(grid.frame)[:d, :d], np.moveaxis(vectors, -1, 0), axes=1)
    return Placed(Dense(torch.from_numpy(u.astype(np.float32))[None], grid, "identity"), grid)


IMAGES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Space:
    """Grids of the fixed and the moving image, as their files store them; None if unknown."""

    fixed: Grid | None = None
    moving: Grid | None = None

    def both(self, what: str) -> tuple[Grid, Grid]:
        """Both grids; raises ConfigError if one is missing, on which ``what`` depends."""
        if self.fixed is None or self.moving is None:
            missing = option("fixed" if self.fixed is None else "moving", "IMAGE")
            raise ConfigError(f"{what} depends on the grids of both images: pass {missing}")
        return self.fixed, self.moving


def choose_grid(transform: Transform, space: Space) -> Grid:
    """The fixed grid if it is known, else the grid of the first warp that a point goes through.

    Raises:
        ConfigError: there is neither.
    """
    own = [m.grid for m in flat(transform) if isinstance(m, Placed)]
    if space.fixed is None and not own:
        raise ConfigError(f"an affine has no grid of its own: pass {option('fixed', 'IMAGE')}")
    return space.fixed or own[0]


def affine_map(path: Path, matrix: np.ndarray) -> Affine:
    """The map of a world matrix (d+1, d+1) that was read from ``path``. Raises InputError if it is singular, not finite or not affine."""
    if not is_invertible(matrix):
        raise InputError(f"{path}: the affine is singular, not finite, or not affine (last row 0 .. 0 1); write it again with its tool")
    return Affine(torch.as_tensor(np.array(matrix, dtype=np.float64)))


def voxel_indices(grid: Grid) -> np.ndarray:
    """Indices of all voxels, (*s, d)."""
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in grid.shape), indexing="ij"), -1)


def apply_matrix(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(*s, d) points under a homogeneous matrix."""
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def read_vectors(path: Path, grid: Grid | None) -> tuple[np.ndarray, Grid, int]:
    """Read a NIfTI file of vectors: (*s, d), its grid (``grid``, if given, which it must fit), and its intent."""
    raw = read_raw(path, strict=False)
    space, shape = raw.header.placement, raw.array.shape
    if shape[3:] not in ((2,), (3,), (1, 2), (1, 3)) or shape[-1] != len(space.axes) or not np.isfinite(raw.array).all():
        raise InputError(f"{path}: shape {shape} is no field of finite vectors; (X, Y, Z, 3) or (X, Y, Z, 1, 3) is expected")
    array = raw.array.astype(np.float64).reshape(*(shape[k] for k in space.axes), shape[-1])
    if grid is not None and array.shape[:-1] != grid.shape:
        raise InputError(
            f"{path}: a field of {array.shape[:-1]} voxels, but the fixed image has {grid.shape}; give the image of this field: "
            f"{option('fixed', 'IMAGE')}"
        )
    return array, grid or raw.header.grid(), raw.header.intent


@dataclass(frozen=True)
class Field:
    """Vectors of a NIfTI file in ITK's layout, (*s, d) as stored, on the file's own grid."""

    values: np.ndarray
    grid: Grid

    def positions(self) -> np.ndarray:
        """Points of the voxels in RAS millimeters, (*s, d)."""
        return self.grid.voxel_to_world(voxel_indices(self.grid))


def read_field(path: Path) -> Field:
    """Read a NIfTI file (X, Y, Z, 1, 3), or (X, Y, 1, 1, 2) in 2D, of one vector at each voxel.

    Raises:
        InputError: the file is damaged, has another shape, or its vectors are not finite.
    """
    raw = read_raw(path, strict=True)
    shape, axes = raw.array.shape, raw.header.placement.axes
    if len(shape) != 5 or shape[3:] != (1, len(axes)) or len(axes) < 2:
        raise InputError(f"{path}: shape {shape} is no displacement field; (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2) is expected")
    if not np.isfinite(raw.array).all():
        raise InputError(f"{path}: the displacement has NaN or Inf; write it again with the tool that made it")
    grid = raw.header.grid()
    return Field(raw.array.reshape(*grid.shape, len(axes)).astype(np.float64), grid)


def is_like_positions(transform: Transform) -> bool:
    """Whether a warp's vectors are, but for a quarter of their spread, the positions of their voxels or those with x and y turned.

    A displacement is not, unless the map doubles all lengths.
    """
    if not (isinstance(transform, Placed) and isinstance(transform.transform, Dense)):
        return False
    grid = transform.grid
    vectors = world_displacement(transform.transform.displacement, grid)
    positions = grid.voxel_to_world(voxel_indices(grid))
    turned = positions @ ras_to_lps(grid.ndim)[:-1, :-1]
    spread = positions.std(axis=tuple(range(grid.ndim)))
    return any(bool((np.std(vectors - x, axis=tuple(range(grid.ndim))) < spread / 4).all()) for x in (positions, turned))


def require_3d(grid: Grid, what: str) -> None:
    """Raise ConfigError for a 2D grid, which the format ``what`` cannot hold."""
    if grid.ndim != 3:
        raise ConfigError(f"{what} is for 3D images only, not {grid.ndim}D ones; write the transform for ITK")


def affine_matrix(transform: Transform, path: Path) -> np.ndarray:
    """The world matrix (d+1, d+1) of an affine map, or of a chain of affine maps.

    Raises:
        OutputError: a map of the chain is not affine, or the matrix is singular or not finite; the message names ``path``.
    """
    maps = flat(transform)
    wrong = [m for m in maps if not isinstance(m, Affine)]
    if wrong:
        raise OutputError(f"{path}: an affine file cannot hold a warp; write .nii.gz or .h5")
    matrices = [m.matrix.double().numpy() for m in maps if isinstance(m, Affine)]
    out = np.eye(len(matrices[0]) if matrices else 4)
    for m in matrices:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not invertible
            out = m @ out
    if not is_invertible(out):
        raise OutputError(f"{path}: not written: the affine is singular, or holds NaN or Inf; check the transforms")
    return out


def read_matrix(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read an affine from a text file of ``shape`` numbers, as a square matrix; lines that begin with # are comments.

    Raises:
        InputError: other numbers, or a matrix that is singular, not finite or not affine.
    """
    try:
        lines = [
            line for line in require_file(path).read_text(encoding="utf-8-sig").splitlines() if line.strip() and not line.startswith("#")
        ]
        numbers = np.array(" ".join(lines).split(), dtype=np.float64).reshape(shape)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {shape[0] * shape[1]} numbers in a text file are expected ({error})") from error
    whole = np.vstack([numbers, [0, 0, 0, 1]]) if shape[0] < shape[1] else numbers
    return affine_map(path, whole).matrix.numpy()


def write_matrix(path: Path, matrix: np.ndarray, banner: str = "") -> None:
    """Write a matrix as text, one row a line, after the text ``banner``."""
    require_finite_result(path, matrix)
    write_atomically(path, (banner + "".join("  ".join(f"{x:.10g}" for x in row) + "\n" for row in matrix)).encode())
