"""Images of other libraries, in both directions: nibabel, SimpleITK, ANTs, and arrays of numpy and torch. None of them is imported here
but nibabel, unless an image of it is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from rdmm.io.formats.choice import check_image_output, read_grid, write_voxels
from rdmm.io.formats.header import affine_in_mm, placement_of
from rdmm.io.formats.simpleitk import from_sitk, is_sitk, itk_affine, itk_geometry, to_sitk
from rdmm.io.images import smallest_integers, stored_voxels
from rdmm.io.in_memory import image_array, require_image_source, tensor_array
from rdmm.io.nifti import Source, encode_nifti
from rdmm.spatial import image as spatial
from rdmm.spatial.grid import Grid
from rdmm.types import ConfigError, InputError, OutputError, option

Given = Any
"""An image as Python gives it: a path, an image of nibabel, SimpleITK, ANTs or MONAI, an ``rdmm.Image``, or an array of numpy or torch."""


class Image(spatial.Image):
    """Intensities or labels on a grid, with an optional mask; and conversions to other libraries.

    Args:
        data: (b, c, *s); labels (b, 1, *s) are whole numbers of any type, and int64 where rdmm has read them.
        grid: the grid of the last axes.
        mask: (b, 1, *s), weight of each voxel in a similarity, in [0, 1]; None: 1 everywhere.

    ``numpy.asarray(image)`` is ``image.numpy()``.

    Raises:
        InputError: data or mask are no tensors of the grid's shape.
    """

    def numpy(self) -> np.ndarray:
        """The voxels as the file or array of this grid has its axes, (x, y) or (x, y, z) as in nibabel; several channels are the last axis.

        Raises:
            InputError: a batch of several images.
        """
        channels = image_array(self, "the image")[0]
        return np.moveaxis(channels, 0, -1).reshape(*placement_of(self.grid).shape, *([len(channels)] if len(channels) > 1 else []))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy) if copy is not None else np.asarray(self.numpy(), dtype=dtype)

    @classmethod
    def from_array(cls, array: np.ndarray | torch.Tensor, spacing: Sequence[float] | None = None, affine: Any = None) -> Image:
        """The image of an array (x, y), (x, y, z) or (x, y, z, channel), which ``spacing`` or ``affine`` places as for ``rdmm.register``.

        Raises:
            InputError: the array has other axes, or holds no real numbers.
            ConfigError: a spacing or affine that does not fit the array; or neither.
        """
        voxels = tensor_array(array, "array")
        whole = _channels(voxels if voxels.ndim > 3 else voxels[..., None], _array_affine(voxels, "array", spacing, affine), "array")
        return cls(whole.data, whole.grid)

    def nibabel(self) -> nib.Nifti1Image:
        """A nibabel image, as ``save`` writes it."""
        return nib.Nifti1Image.from_bytes(encode_nifti(self._stored_voxels("the image"), self.grid))

    def simpleitk(self) -> Any:
        """A SimpleITK image. Raises ConfigError if SimpleITK is not installed."""
        array = self.numpy()
        return to_sitk(
            array.astype(np.uint8) if array.dtype == np.bool_ else array, affine_in_mm(self.grid), components=self.data.shape[1] > 1
        )

    sitk = simpleitk

    def ants(self) -> Any:
        """An ANTs image: whole numbers as uint8 or uint32, or float32 if some are negative, since ANTs has no other types.

        Raises:
            ConfigError: antspyx is not installed.
            OutputError: whole numbers that these types cannot hold.
        """
        try:
            import ants
        except ImportError as error:
            raise ConfigError("an image of ANTs needs antspyx, which is not installed: pip install antspyx") from error
        origin, spacing, direction = itk_geometry(affine_in_mm(self.grid))
        d, components = len(origin), self.data.shape[1] > 1
        return ants.from_numpy(_as_ants_holds(self.numpy()), origin, spacing, np.reshape(direction, (d, d)), has_components=components)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a file in the format that its name says and the type of ``data``; labels of 64 bits in the smallest type that holds them.

        Raises:
            ConfigError: the name does not end as those of images (docs/formats.md).
            OutputError: the file exists, or cannot be written.
        """
        path = check_image_output(path, overwrite=overwrite)
        write_voxels(path, self._stored_voxels(path), self.grid)
        return path

    def _stored_voxels(self, path: str | os.PathLike[str]) -> np.ndarray:
        """The voxels (*s) or (*s, c) in the type in which they are stored."""
        array = np.moveaxis(image_array(self, "the image")[0], 0, -1)
        array = array if array.shape[-1] > 1 else array[..., 0]
        if array.dtype in (np.int64, np.bool_):
            return smallest_integers(path, array.astype(np.int64))
        return array if array.dtype != np.float32 else stored_voxels(path, self.data, self.grid, integer=False, missing=True)


def image_source(
    given: Given, name: str, spacing: Sequence[float] | None = None, affine: Any = None, like: Given | Grid | None = None
) -> Source | spatial.Image:
    """What Python gives for an image, as a path, a nibabel image or an ``Image``.

    Args:
        given: see ``Given``. Of an array, the axes are (x, y), (x, y, z), or (x, y, z, volume).
        name: the argument, for messages.
        spacing: of an array: mm along each axis; the axes are R, A, S and the origin is 0.
        affine: of an array: (d+1, d+1) from voxel indices to millimeters (RAS+).
        like: the image whose grid an array has; with it, ``spacing`` and ``affine`` are not used.

    Raises:
        InputError: none of these, or an array whose shape is not that of its image.
        ConfigError: a spacing or affine that does not fit an array.
    """
    if is_sitk(given):
        array, matrix = from_sitk(given)
        return _placed(array, matrix, name) if given.GetNumberOfComponentsPerPixel() == 1 else _channels(array, matrix, name)
    if is_ants(given):
        matrix = itk_affine(given.origin, given.spacing, given.direction)
        return _channels(given.numpy(), matrix, name) if given.has_components else _placed(given.numpy(), matrix, name)
    if is_meta_tensor(given):
        return _from_meta_tensor(given, name)
    if not is_array(given):
        require_image_source(given, name)
        return given
    array = tensor_array(given, name)
    if like is not None:
        return _on_grid_of(array, like, name)
    if spacing is None and affine is None:
        raise InputError(
            f"{name} is an array of shape {array.shape}, which does not say where its voxels are; give an image of nibabel,"
            " or rdmm.Image.from_array(x, affine=...)"
        )
    return _placed(array, _array_affine(array, name, spacing, affine), name)


def is_array(given: Any) -> bool:
    """Whether ``given`` is voxels without a place: an array of numpy or torch."""
    return isinstance(given, np.ndarray | torch.Tensor)


def is_ants(given: Any) -> bool:
    """Whether ``given`` is an image of ANTs; the library is not loaded for this."""
    return type(given).__module__.partition(".")[0] == "ants" and type(given).__name__ == "ANTsImage"


def is_meta_tensor(given: Any) -> bool:
    """Whether ``given`` is an image of MONAI; the library is not loaded for this."""
    return type(given).__module__.partition(".")[0] == "monai" and type(given).__name__ == "MetaTensor"


def _from_meta_tensor(given: Any, name: str) -> spatial.Image:
    """MONAI's tensor (c, *s), with its affine to world millimeters: RAS, unless it says LPS."""
    voxels = np.moveaxis(tensor_array(given.as_tensor(), name), 0, -1)
    matrix = np.asarray(given.affine.tolist())
    if given.meta.get("space") == "LPS":
        matrix[:2] *= -1
    return _channels(voxels, matrix if len(matrix) == 4 else _array_affine(voxels[..., 0], name, None, matrix), name)


def read_given_grid(given: Given | Grid, name: str) -> Grid:
    """The grid of an image that Python gives."""
    if isinstance(given, Grid):
        return given
    source = image_source(given, name)
    return source.grid if isinstance(source, spatial.Image) else read_grid(source)


def name_of(given: Any, argument: str) -> str:
    """How messages call what was given for an argument: by its path, if it is one."""
    return os.fspath(given) if isinstance(given, str | os.PathLike) else argument


def _as_ants_holds(array: np.ndarray) -> np.ndarray:
    """Numbers in a type of ANTs, whose library would wrap negative ones around."""
    if array.dtype.kind == "f" or array.dtype in (np.uint8, np.bool_):
        return array
    dtype = np.uint32 if array.min() >= 0 else np.float32
    held = array.astype(dtype)
    if not np.array_equal(held.astype(np.float64), array.astype(np.float64)):
        raise OutputError(f"the image holds whole numbers up to {np.abs(array).max()}, which no type of ANTs can hold; renumber the labels")
    return held


def _placed(array: np.ndarray, affine: np.ndarray, name: str) -> nib.spatialimages.SpatialImage:
    image = nib.spatialimages.SpatialImage(array, affine)
    image.file_map["image"].filename = name  # what messages call it
    return image


def _channels(array: np.ndarray, affine: np.ndarray, name: str) -> spatial.Image:
    """The components (*s, c) of each voxel as channels."""
    grid = read_grid(_placed(array[..., 0], affine, name))
    return spatial.Image(torch.from_numpy(np.moveaxis(array, -1, 0).reshape(1, -1, *grid.shape).copy()), grid)


def _on_grid_of(array: np.ndarray, like: Given | Grid, name: str) -> spatial.Image:
    """An array (*s), or (*s, c) of channels, in the voxels of an image."""
    grid = read_given_grid(like, name)
    shape = placement_of(grid).shape
    channels = array.shape[len(shape) :] if array.shape[: len(shape)] == shape else array.shape[grid.ndim :]
    if array.shape not in ((*shape, *channels), (*grid.shape, *channels)) or len(channels) > 1:
        raise InputError(f"{name}: an array of shape {array.shape} for an image of shape {shape}; give it in the voxels of its image")
    return spatial.Image(torch.from_numpy(np.moveaxis(array.reshape(*grid.shape, -1), -1, 0)[None].copy()), grid)


def _array_affine(array: np.ndarray, name: str, spacing: Sequence[float] | None, affine: Any) -> np.ndarray:
    """The (4, 4) affine of an array with two or more axes."""
    d = min(array.ndim, 3)
    if spacing is not None and affine is not None:
        raise ConfigError(f"{name}: give {option('spacing', '')} or {option('affine', '')}, not both")
    if spacing is not None:
        lengths = _numbers(spacing, (d,), f"spacing of {name}: {d} lengths in mm")
        if not (lengths > 0).all():
            raise ConfigError(f"{option('spacing', '')} of {name} is {d} lengths in mm, each above 0; got {spacing!r}")
        affine = np.diag([*lengths, 1.0])
    matrix = _numbers(affine, (d + 1, d + 1), f"affine of {name}: a ({d + 1}, {d + 1}) matrix")
    whole = np.eye(4)
    whole[np.ix_([*range(d), 3], [*range(d), 3])] = matrix
    if d == 2:
        whole[2, 2] = np.linalg.norm(matrix[:2, :2], axis=0).mean()
    return whole


def _numbers(given: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        numbers = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != shape:
        raise ConfigError(f"{what} is expected; got {str(given)[:100]}")
    return numbers
