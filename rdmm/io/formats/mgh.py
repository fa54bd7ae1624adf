"""FreeSurfer's images, .mgz and .mgh, through nibabel."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np

from rdmm.io.files import finite_float32, require_file, write_atomically
from rdmm.io.formats.header import Header, Raw, Storage, Time, placement_of
from rdmm.io.nifti import array_in_memory, header_in_memory, require_memory_of
from rdmm.io.streams import MAX_GZIP_RATIO, gzip_bytes
from rdmm.spatial.grid import Grid
from rdmm.spatial.placement import MILLIMETERS
from rdmm.types import InputError, OutputError

ENDINGS = (".mgz", ".mgh")

TYPES = (np.uint8, np.int16, np.int32, np.float32)
"""Types that the format holds."""


def read_mgh_header(path: Path) -> Header:
    """Read what a file says of its image, without reading voxels. Raises InputError: the file is missing or damaged."""
    return header_in_memory(_load(path), strict=False)


def read_mgh_raw(path: Path) -> Raw:
    """Read all voxels. Raises InputError: the file is damaged; ResourceError: they do not fit into the free memory."""
    image = _load(path)
    header, dtype = header_in_memory(image, strict=False), np.dtype(image.get_data_dtype())
    promised, stored = math.prod(header.shape) * dtype.itemsize, path.stat().st_size
    capacity = stored * (MAX_GZIP_RATIO if path.suffix.lower() == ".mgz" else 1)
    if promised > capacity:
        raise InputError(f"{path}: truncated: the header promises {promised} bytes, the file can hold {capacity}; copy the file again")
    require_memory_of(header, dtype)
    array = array_in_memory(header, image)
    time = float(image.header["tr"]) if len(header.shape) == 4 else 0.0
    return Raw(header, array, Storage(array.dtype.newbyteorder("="), time=Time(time, unit=16) if time > 0 else Time()))


def write_mgh(path: Path, array: np.ndarray, grid: Grid, storage: Storage, *, is_vector: bool) -> None:
    """Write voxels (*s), or volumes (*s, n), as the first of TYPES that holds them.

    Raises:
        OutputError: vectors, or numbers that no type holds; or the file cannot be written.
    """
    if is_vector:
        raise OutputError(f"{path}: FreeSurfer's files hold no vectors or colors; write .nii.gz")
    placement = placement_of(grid)
    shape = (*placement.shape, *(1,) * (3 - len(placement.shape)), *array.shape[grid.ndim :])
    affine = np.diag([MILLIMETERS[placement.unit]] * 3 + [1.0]) @ placement.storable_affine()
    image = nib.MGHImage(_as_held(path, array).reshape(shape), affine)
    if len(shape) == 4 and storage.time.unit == 16:
        image.header["tr"] = storage.time.step
    data = image.to_bytes()
    write_atomically(path, gzip_bytes(data) if path.suffix.lower() == ".mgz" else data)


def _as_held(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return finite_float32(path, array) if np.isfinite(array).all() else array.astype(np.float32)
    for dtype in TYPES[:3]:
        limits = np.iinfo(dtype)
        if array.dtype == dtype or (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
            return array.astype(dtype)
    raise OutputError(f"{path}: numbers from {array.min()} to {array.max()} exceed 32 bits, which FreeSurfer's files hold; write .nii.gz")


def _load(path: Path) -> nib.MGHImage:
    try:
        return nib.MGHImage.from_filename(require_file(path))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: not an image of FreeSurfer ({error}); copy the file again") from error
