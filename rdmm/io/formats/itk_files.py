"""Images that SimpleITK reads and writes: NRRD, MetaImage, and DICOM series, each a folder. Its images become RAS+ millimeters."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rdmm.io.files import require_file, write_atomically
from rdmm.io.formats.header import Header, Raw, Storage, Time, affine_in_mm, placement_of
from rdmm.io.formats.simpleitk import from_sitk, itk_affine, load_simpleitk, to_sitk
from rdmm.io.nifti import VECTOR_INTENT, require_memory_of, require_scalars
from rdmm.io.streams import MAX_GZIP_RATIO
from rdmm.spatial.grid import Grid
from rdmm.spatial.placement import Placement
from rdmm.types import InputError

ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of the names of files that are read and written, in lower case."""

DATA_ENDINGS = {".nhdr": ".raw.gz", ".mhd": ".zraw"}
"""Endings of the second file, with the voxels, of formats whose header stands alone."""

VECTOR_SIZES = (2, 3, 6)
"""Numbers at a voxel that are vectors or symmetric tensors; others are volumes, as Slicer's sequences have them."""


def read_itk_header(path: Path) -> Header:
    """Read what a file says of its image, without reading voxels.

    Raises:
        InputError: the file is missing or damaged, or its axes are degenerate.
        ConfigError: SimpleITK is not installed.
    """
    reader = _reader(path)
    return _header(path, reader, reader.GetNumberOfComponents(), _dtype(reader))


def read_itk_raw(path: Path, *, colors: bool) -> Raw:
    """Read all voxels of an image.

    Raises:
        InputError: the file is damaged, or its voxels are not real numbers.
        ResourceError: the voxels do not fit into the free memory.
        ConfigError: SimpleITK is not installed.
    """
    reader = _reader(path)
    dtype, count = _dtype(reader), reader.GetNumberOfComponents()
    header = _header(path, reader, count, dtype)
    require_scalars(path, dtype)
    promised, stored = math.prod(header.shape) * dtype.itemsize, path.stat().st_size
    if path.suffix.lower() not in DATA_ENDINGS and promised > MAX_GZIP_RATIO * stored:
        raise InputError(f"{path}: truncated: the header promises {promised} bytes, the file has {stored}; copy the file again")
    require_memory_of(header, dtype)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: its voxels cannot be read ({_reason(error)}); copy the file again") from error
    return _raw(header, from_sitk(image)[0], reader, colors=colors)


def read_series_header(folder: Path) -> Header:
    """What a folder of DICOM files says of its image; the folder holds one series. Errors as for ``read_series_raw``."""
    return read_series_raw(folder).header


def read_series_raw(folder: Path) -> Raw:
    """Read the only DICOM series of a folder.

    Raises:
        InputError: there is none, there are several, or slices are missing or not evenly spaced.
        ResourceError: the voxels do not fit into the free memory.
    """
    require_series(folder)
    sitk = load_simpleitk(f"{folder}: a DICOM series")
    ids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(os.fspath(folder))
    names = {k: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(os.fspath(folder), k) for k in ids}
    if len(names) != 1:
        found = ", ".join(f"{_description(sitk, files[0])} ({len(files)} files)" for files in names.values())
        raise InputError(f"{folder}: {len(names)} DICOM series: {found}; put the files of one of them into a folder of its own")
    (files,) = names.values()
    slices = [_information(sitk, Path(file)) for file in files]
    _require_even_steps(folder, np.array([s.GetOrigin() for s in slices]))
    dtype = _dtype(slices[0])
    require_scalars(folder, dtype)
    size = (*slices[0].GetSize()[:2], len(files))
    require_memory_of(Header(folder, size, Placement(size, np.eye(4))), dtype)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{folder}: the DICOM series cannot be read ({_reason(error)}); copy its files again") from error
    array, affine = from_sitk(image)
    return Raw(Header(folder, array.shape, Placement(array.shape[:3], affine)), array, Storage(array.dtype))


def holds_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files, as far as can be said without SimpleITK: one of its files begins as they do."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_size > 132:
            with open(file, "rb") as f:
                if f.read(132)[128:] == b"DICM":
                    return True
    return False


def require_series(folder: Path) -> None:
    """Raise InputError for a folder without DICOM files."""
    if not holds_series(folder):
        raise InputError(f"{folder}: is a directory, not a file, and holds no DICOM series; give the file of an image")


def write_itk(path: Path, array: np.ndarray, grid: Grid, storage: Storage, *, is_vector: bool) -> None:
    """Write voxels (*s), or volumes or vectors (*s, n), in the format that the name says.

    Raises:
        OutputError: the axes are sheared, or the file cannot be written.
        ConfigError: SimpleITK is not installed.
    """
    sitk, placement = load_simpleitk(os.fspath(path)), placement_of(grid)
    values, affine = array.reshape(*placement.shape, *array.shape[grid.ndim :]), affine_in_mm(grid)
    if array.ndim > grid.ndim and not is_vector and len(placement.shape) == 2:
        values, affine = values[:, :, None], placement.storable_affine()
    image = to_sitk(values, affine, components=is_vector)
    if image.GetDimension() == 4:
        image.SetSpacing((*image.GetSpacing()[:3], storage.time.step))
        image.SetOrigin((*image.GetOrigin()[:3], storage.time.start))
    with tempfile.TemporaryDirectory() as folder:
        try:
            sitk.WriteImage(image, os.path.join(folder, path.name), True)
        except RuntimeError as error:
            raise InputError(f"{path}: SimpleITK cannot write it ({_reason(error)})") from error
        for name in sorted(os.listdir(folder), key=lambda n: n == path.name):  # the header last: it makes the image complete
            write_atomically(path.parent / name, Path(folder, name).read_bytes())


def data_file(path: Path) -> Path | None:
    """The second file that is written with a header of its own; None for files that hold all."""
    ending = DATA_ENDINGS.get(path.suffix.lower())
    return None if ending is None else path.with_name(path.name[: -len(path.suffix)] + ending)


MAX_UNEVEN = 0.02
"""Largest difference between two steps from slice to slice, of a step: positions in DICOM are rounded. Not measured."""


def _require_even_steps(folder: Path, origins: np.ndarray) -> None:
    """Raise InputError unless slices with these origins (n, 3) are evenly spaced."""
    steps = np.diff(origins, axis=0)
    if len(steps) and np.abs(steps - steps.mean(0)).max() > MAX_UNEVEN * np.linalg.norm(steps.mean(0)):
        raise InputError(f"{folder}: slices of the DICOM series are missing or not evenly spaced; convert it with dcm2niix")


def _reader(path: Path) -> Any:
    return _information(load_simpleitk(os.fspath(path)), require_file(path))


def _information(sitk: Any, path: Path) -> Any:
    """A reader that knows the header of a file."""
    sitk.ProcessObject.GlobalWarningDisplayOff()  # what ITK writes to the standard error is said by our errors
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: SimpleITK cannot read it ({_reason(error)}); copy the file again") from error
    return reader


def _reason(error: RuntimeError) -> str:
    """The last line of a message of ITK, without its addresses."""
    return str(error).strip().splitlines()[-1].split("): ")[-1].strip()


def _dtype(reader: Any) -> np.dtype:
    """The type of each component."""
    sitk = load_simpleitk("an image")
    kind, count = reader.GetPixelIDValue(), reader.GetNumberOfComponents()
    sample = sitk.Image([1, 1], kind, count) if count > 1 else sitk.Image([1, 1], kind)
    return np.dtype(sitk.GetArrayViewFromImage(sample).dtype)


def _header(path: Path, reader: Any, count: int, dtype: np.dtype) -> Header:
    size = tuple(int(n) for n in reader.GetSize())
    if not 2 <= len(size) <= 4 or (len(size) == 4 and count > 1):
        raise InputError(f"{path}: {len(size)} axes {size} of {count} numbers a voxel; a 2D or 3D image, or volumes, are expected")
    space = size[:3]
    vectors = () if count == 1 else (*(1,) * (3 - len(space)), *((1,) if _is_vector(count, dtype) else ()), count)
    affine = itk_affine(reader.GetOrigin(), reader.GetSpacing(), reader.GetDirection())
    return Header(path, (*size, *vectors), Placement(space, affine), VECTOR_INTENT if count == len(space) else 0)


def _is_vector(count: int, dtype: np.dtype) -> bool:
    return count in VECTOR_SIZES or (count == 4 and dtype == np.uint8)


def _raw(header: Header, array: np.ndarray, reader: Any, *, colors: bool) -> Raw:
    count, dtype = reader.GetNumberOfComponents(), array.dtype
    is_color = dtype == np.uint8 and count in (3, 4)
    if is_color and not colors:
        raise InputError(f"{header.path}: {count} numbers of 8 bits a voxel, which are colors; convert to scalar intensities")
    step = float(reader.GetSpacing()[3]) if reader.GetDimension() == 4 else 1.0
    storage = Storage(dtype, 0 if is_color else header.intent, Time(step), is_color)
    return Raw(header, array.reshape(header.shape), storage)


def _description(sitk: Any, name: str) -> str:
    reader = _information(sitk, Path(name))
    return reader.GetMetaData("0008|103e").strip() if reader.HasMetaDataKey("0008|103e") else "without a description"
