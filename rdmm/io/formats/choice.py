"""Images of every format. Only this module chooses a reader or writer: by the ending of the name, or DICOM for a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from rdmm.io import nifti
from rdmm.io.files import check_output, require_ending, require_file
from rdmm.io.formats import itk_files, mgh
from rdmm.io.formats.header import Header, Raw, Storage
from rdmm.io.formats.simpleitk import load_simpleitk
from rdmm.io.in_memory import require_image_source
from rdmm.io.nifti import Source
from rdmm.spatial.grid import Grid

ENDINGS = (*nifti.ENDINGS, *itk_files.ENDINGS, *mgh.ENDINGS)
"""Endings of the names of images, in any case."""


def is_image_name(name: str | os.PathLike[str]) -> bool:
    """Whether a name ends as those of images."""
    return os.fspath(name).lower().endswith(ENDINGS)


def _kind(path: str | os.PathLike[str]) -> Literal["series", "itk", "mgh", "nifti"]:
    """Which reader a path needs: that of NIfTI for all names that no other has."""
    require_image_source(path, "the image")
    if os.path.isdir(path):
        return "series"
    name = os.fspath(path).lower()
    return "itk" if name.endswith(itk_files.ENDINGS) else "mgh" if name.endswith(mgh.ENDINGS) else "nifti"


def require_source(path: str | os.PathLike[str]) -> None:
    """Check that an input exists, without reading it: a file, or the folder of a DICOM series. Raises InputError."""
    if os.path.isdir(path):
        itk_files.require_series(Path(path))
    else:
        require_file(path)


def read_header(source: Source, *, strict: bool = False) -> Header:
    """Read what an image says of itself, without reading voxels (of a DICOM series: with them).

    Args:
        source: a path, the folder of a DICOM series, or a nibabel image.
        strict: refuse a NIfTI file without s-form and q-form.

    Raises:
        InputError: the file is missing or damaged.
        ConfigError: the format needs SimpleITK, which is not installed.
    """
    if isinstance(source, nib.spatialimages.SpatialImage):
        return nifti.read_header(source, strict=strict)
    kind, path = _kind(source), Path(source)
    if kind == "series":
        return itk_files.read_series_header(path)
    if kind == "itk":
        return itk_files.read_itk_header(path)
    return mgh.read_mgh_header(path) if kind == "mgh" else nifti.read_header(source, strict=strict)


def read_raw(source: Source, *, strict: bool, colors: bool = False) -> Raw:
    """Read all voxels of an image; arguments and errors as for ``read_header``.

    Args:
        colors: also read colored voxels.

    Raises:
        ResourceError: the voxels do not fit into the free memory.
    """
    if isinstance(source, nib.spatialimages.SpatialImage):
        return nifti.read_raw(source, strict=strict)
    kind, path = _kind(source), Path(source)
    if kind == "series":
        return itk_files.read_series_raw(path)
    if kind == "itk":
        return itk_files.read_itk_raw(path, colors=colors)
    return mgh.read_mgh_raw(path) if kind == "mgh" else nifti.read_raw(source, strict=strict, colors=colors)


def read_grid(source: Source, *, strict: bool = False) -> Grid:
    """Read the grid of an image, whatever its voxels are: colors, complex numbers, NaN, volumes or vectors.

    Raises:
        InputError: the file is damaged, or its affine is singular.
    """
    header = read_header(source, strict=strict)
    if header.fields is not None and not isinstance(source, nib.spatialimages.SpatialImage):
        nifti.check_voxels(header)
    return header.grid()


def peek_shape(source: Source) -> tuple[int, ...]:
    """The shape that a header states; nothing else of a NIfTI file is read, checked or warned of."""
    is_nifti = isinstance(source, nib.spatialimages.SpatialImage) or _kind(source) == "nifti"
    return nifti.peek(source)[0] if is_nifti else read_header(source).shape


def check_image_output(out: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check, before anything is computed, that an image can be written under this name; return its path.

    Raises:
        ConfigError: the name has another ending, or its format needs SimpleITK, which is not installed.
        OutputError: the file exists, or cannot be written.
    """
    path = require_ending(out, ENDINGS, "an image")
    if _kind(path) == "itk":
        load_simpleitk(os.fspath(path))
    voxels = itk_files.data_file(path)
    if voxels is not None:
        check_output(voxels, overwrite=overwrite)
    return check_output(path, overwrite=overwrite)


def write_voxels(
    path: str | os.PathLike[str], array: np.ndarray, grid: Grid, storage: Storage | None = None, *, is_vector: bool = False
) -> None:
    """Write an image in the format that its name says.

    Args:
        array: voxels (*s), or volumes (*s, n), in the type in which they are stored.
        storage: the time axis of volumes; the intent of vectors, and whether they are colors.
        is_vector: the n numbers of a voxel belong together.

    Raises:
        ConfigError: the name has another ending, or its format needs SimpleITK.
        OutputError: the format cannot hold the image, or the file cannot be written.
    """
    path, kept = require_ending(path, ENDINGS, "an image"), storage or Storage(array.dtype)
    kind = _kind(path)
    if kind == "itk":
        itk_files.write_itk(path, array, grid, kept, is_vector=is_vector)
    elif kind == "mgh":
        mgh.write_mgh(path, array, grid, kept, is_vector=is_vector)
    else:
        nifti.write_nifti(path, nifti.encode_stored(array, grid, kept, is_vector=is_vector))
