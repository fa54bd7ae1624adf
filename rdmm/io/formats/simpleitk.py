"""SimpleITK's images in memory: their voxels and geometry, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from rdmm.types import ConfigError, InputError, OutputError

MAX_SHEAR = 1e-3
"""Largest cosine between two axes that are at right angles to rounding. Not measured."""


def load_simpleitk(what: str) -> ModuleType:
    """The library. Raises ConfigError if it is not installed; ``what`` needs it, for the message."""
    try:
        import SimpleITK
    except ImportError as error:
        raise ConfigError(f"{what}: SimpleITK reads and writes it, and is not installed: pip install 'rdmm[itk]'") from error
    return SimpleITK


def is_sitk(value: Any) -> bool:
    """Whether a value is an image of SimpleITK; the library is not loaded for this."""
    return type(value).__module__.partition(".")[0] == "SimpleITK" and type(value).__name__ == "Image"


def itk_affine(origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float] | np.ndarray) -> np.ndarray:
    """The (4, 4) affine from voxel indices to RAS+ millimeters of ITK's geometry, (d,), (d,) and (d, d) in LPS+, d = 2 to 4.

    A 2D image lies in the plane z = 0, and its voxels are as thick as their mean edge. Of four axes, the first three count.
    """
    d = len(origin)
    space = min(d, 3)
    axes = np.asarray(direction, dtype=np.float64).reshape(d, d)[:space, :space] * np.asarray(spacing, dtype=np.float64)[:space]
    affine = np.eye(4)
    affine[:space, :space], affine[:space, 3] = axes, np.asarray(origin, dtype=np.float64)[:space]
    if d == 2:
        affine[2, 2] = np.mean(spacing)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def itk_geometry(affine: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """ITK's origin (d,), spacing (d,) and direction (d * d,) in LPS+ of an affine (d+1, d+1) to RAS+ millimeters, d = 2 or 3.

    Raises:
        OutputError: the axes are sheared, which ITK cannot hold.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    d = len(matrix) - 1
    matrix = np.diag([-1.0, -1.0, *[1.0] * (d - 1)]) @ matrix
    spacing = np.linalg.norm(matrix[:d, :d], axis=0)
    direction = matrix[:d, :d] / spacing
    if np.abs(direction.T @ direction - np.eye(d)).max() > MAX_SHEAR:
        raise OutputError("the axes of the image are sheared, and ITK cannot hold that; resample it to a grid with right angles first")
    return matrix[:d, d].tolist(), spacing.tolist(), direction.ravel().tolist()


def from_sitk(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """The voxels (*size), or (*size, c) of c components, of a SimpleITK image in its own type, and its affine as ``itk_affine`` gives it.

    Raises:
        InputError: the image has more than four axes, or voxels that numpy has no type for.
    """
    sitk, d = load_simpleitk("an image of SimpleITK"), image.GetDimension()
    if d > 4:
        raise InputError(f"an image of SimpleITK with {d} axes; 2 to 4 are expected")
    if image.GetPixelIDTypeAsString().startswith("label"):  # its buffer ends the interpreter
        image = sitk.LabelMapToLabel(image)
    array = sitk.GetArrayFromImage(image)
    array = array.transpose(*reversed(range(d)), *range(d, array.ndim))
    return array, itk_affine(image.GetOrigin(), image.GetSpacing(), image.GetDirection())


def to_sitk(array: np.ndarray, affine: np.ndarray, *, components: bool = False) -> Any:
    """A SimpleITK image of voxels (X, Y), (X, Y, Z) or (X, Y, Z, t), and of c ``components`` on one axis more.

    Args:
        affine: (3, 3) of two axes, otherwise (4, 4): from voxel indices to RAS+ millimeters.

    Raises:
        OutputError: the axes are sheared.
    """
    sitk, d = load_simpleitk("an image of SimpleITK"), array.ndim - components
    image = sitk.GetImageFromArray(array.transpose(*reversed(range(d)), *range(d, array.ndim)), isVector=components)
    origin, spacing, direction = itk_geometry(affine)
    if d == 4:
        whole = np.eye(4)
        whole[:3, :3] = np.reshape(direction, (3, 3))
        origin, spacing, direction = [*origin, 0.0], [*spacing, 1.0], whole.ravel().tolist()
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image
