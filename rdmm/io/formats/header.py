"""What is known of an image before its voxels are read, and how its file stores them; the same for all formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from rdmm.spatial.grid import Grid
from rdmm.spatial.placement import MILLIMETERS, Placement
from rdmm.types import InputError


@dataclass(frozen=True)
class Time:
    """The fourth axis of a file: the step between volumes and the time of the first, and NIfTI's code of the unit of both."""

    step: float = 1.0
    start: float = 0.0
    unit: int = 0


@dataclass(frozen=True)
class Storage:
    """How a file stores what its voxels hold, beside their place. A result on another grid keeps it.

    Args:
        dtype: type of the voxels; float32 for integers with a scaling factor.
        intent: NIfTI's code of what the values are.
        time: the axis of a file's volumes.
        is_color: the last axis are colors, red, green, blue and maybe alpha.
    """

    dtype: np.dtype
    intent: int = 0
    time: Time = Time()
    is_color: bool = False


@dataclass(frozen=True, eq=False)
class Header:
    """What is known of an image before its voxels are read.

    Args:
        path: the file's name, for messages.
        shape: all axes, also those of time and of vectors.
        placement: where the voxels lie.
        intent: NIfTI's code of what the values are.
        fields: all fields of the header; None if the image is not NIfTI.
    """

    path: Path
    shape: tuple[int, ...]
    placement: Placement
    intent: int = 0
    fields: Any = None

    def grid(self) -> Grid:
        """The grid of the first two or three axes, 2D for a single slice.

        Raises:
            InputError: there are no such axes, or their affine is singular.
        """
        placement = self.placement
        if len(self.shape) < 2 or len(placement.axes) < 2:
            raise InputError(f"{self.path}: {len(self.shape)} dimensions {self.shape}; a 2D or 3D image is expected")
        try:
            return Grid.placed(placement)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error


@dataclass(frozen=True, eq=False)
class Raw:
    """The header, and all scaled voxels (*header.shape) in the file's type; colors are the last axis, (X, Y, Z, 1, 3 or 4)."""

    header: Header
    array: np.ndarray
    storage: Storage


def make_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    """The grid of a file that is not NIfTI; errors name the file."""
    try:
        return Grid(shape, affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def placement_of(grid: Grid) -> Placement:
    """How results on a grid are stored: as the file that the grid was read from, otherwise by its affine.

    A 2D grid without a file lies in the plane z = 0; its voxels are as thick as their mean edge.
    """
    if grid.placement is not None:
        return grid.placement
    if grid.ndim == 3:
        return Placement(grid.shape, grid.affine)
    affine = np.eye(4)
    affine[np.ix_([0, 1, 3], [0, 1, 3])] = np.asarray(grid.affine)
    affine[2, 2] = sum(grid.voxel) / 2
    return Placement(grid.shape, affine)


def axis_codes(grid: Grid) -> str:
    """Directions of the axes of a 3D grid: three of L R P A I S, e.g. "RAS"; "2D" for a grid in the plane."""
    return "".join(nib.aff2axcodes(np.asarray(grid.affine))) if grid.ndim == 3 else "2D"


def affine_in_mm(grid: Grid) -> np.ndarray:
    """From the voxels of a grid as its file has its axes to millimeters (RAS+): (4, 4), or (3, 3) for a file of two axes."""
    placement = placement_of(grid)
    if len(placement.shape) == 2:
        return np.asarray(grid.affine)
    return np.diag([MILLIMETERS[placement.unit]] * 3 + [1.0]) @ placement.storable_affine()
