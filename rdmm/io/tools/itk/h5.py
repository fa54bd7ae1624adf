"""ITK's composite transforms (.h5), as ANTs and SimpleITK write them: affine maps and displacement fields in one file."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from rdmm.io.files import require_file, require_finite_result, write_atomically
from rdmm.io.streams import MAX_GZIP_RATIO, PIECE
from rdmm.io.tools.itk.maps import Entry, decode
from rdmm.io.vectors import from_vectors, ras_to_lps, require_itk_grid, to_itk_affine, world_vectors
from rdmm.runtime.resources import require_memory
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Affine, Placed, Transform, flat
from rdmm.types import ConfigError, InputError, option

COPIES = 4
"""Copies of a transform's numbers that exist at once while it is read: as stored, in float64, in RAS, and as the map. Not measured."""


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("ITK's .h5 files need h5py: pip install 'rdmm[formats]'") from error
    return h5py


def write_h5(path: Path, transform: Transform, grid: Grid | None) -> None:
    """Write a transform as ITK's CompositeTransform, which applies its last entry to a point first.

    Maps without a grid of their own are sampled on ``grid``.

    Raises:
        ConfigError: h5py is not installed, or a map needs ``grid`` and it is None.
    """
    maps = [m if isinstance(m, Affine | Placed) else _sample_warp(m, grid) for m in flat(transform)]
    d = transform.ndim or 3
    buffer = io.BytesIO()
    with _import_h5py().File(buffer, "w") as file:
        text = _import_h5py().string_dtype("ascii")
        groups = [(f"CompositeTransform_double_{d}_{d}", None, None), *(_encode_map(m) for m in reversed(maps))]
        for k, (kind, parameters, fixed) in enumerate(groups):
            group = file.create_group(f"TransformGroup/{k}")
            group.create_dataset("TransformType", data=[kind], dtype=text)
            if parameters is not None:
                group.create_dataset("TransformParameters", data=require_finite_result(path, parameters))
                group.create_dataset("TransformFixedParameters", data=fixed)
        for name, value in (("ITKVersion", "5.4.0"), ("HDFVersion", "1.14"), ("OSName", "any"), ("OSVersion", "any")):
            file.create_dataset(name, data=[value], dtype=text)
    write_atomically(path, buffer.getvalue())


def _sample_warp(m: Transform, grid: Grid | None) -> Placed:
    """Sample a map on ``grid``, as a displacement field."""
    if grid is None:
        raise ConfigError(f"this transform has no grid of its own: pass {option('fixed', 'IMAGE')}")
    return from_vectors(world_vectors(m, grid), grid)


def _encode_map(m: Transform) -> tuple[str, np.ndarray, np.ndarray]:
    """ITK's type name, parameters and fixed parameters of one map."""
    if isinstance(m, Affine):
        d = m.ndim
        return f"AffineTransform_double_{d}_{d}", to_itk_affine(m.matrix.double().numpy()), np.zeros(d)
    assert isinstance(m, Placed)
    grid, d = m.grid, m.ndim
    require_itk_grid(grid, "the warp")
    vectors = world_vectors(m, grid) @ ras_to_lps(d)[:d, :d]
    axes = (ras_to_lps(d) @ np.asarray(grid.affine))[:d] / [*grid.voxel, 1.0]
    fixed = np.concatenate([grid.shape, axes[:, d], grid.voxel, axes[:, :d].ravel()])
    parameters = vectors.reshape(-1, d, order="F").ravel()  # one vector after the other; the first axis varies fastest
    return f"DisplacementFieldTransform_double_{d}_{d}", parameters, fixed


def is_hdf5(head: bytes) -> bool:
    """Whether the first bytes of a file are those of HDF5."""
    return head.startswith(b"\x89HDF")


def read_h5(path: Path) -> Transform:
    """Read a transform file of ITK as a map of world millimeters.

    Raises:
        InputError: the file is not one of ITK's, takes numbers from elsewhere, or holds transforms that cannot be read.
        ResourceError: its numbers need more memory than is free.
        ConfigError: h5py is not installed.
    """
    h5py = _import_h5py()
    _require_sound_heaps(path)
    try:
        with h5py.File(require_file(path), "r") as file:
            group = _child(path, file, "TransformGroup")
            entries = [_read_entry(path, _child(path, group, str(k))) for k in range(len(group))]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise InputError(f"{path}: not a transform file of ITK ({type(error).__name__}: {error})") from error
    return decode(path, entries)


HEAP, WORD = b"GCOL\x01\0\0\0", 8
"""The first bytes of a heap, which holds the texts of a file; bytes of a size or a place in it."""


def _require_sound_heaps(path: Path) -> None:
    """Walk through the objects of each heap as the HDF5 library does, which would go round a damaged one without end.

    Raises:
        InputError: an object leads back or out of its heap, or sizes have another number of bytes than 8.
    """
    with open(require_file(path), "rb") as file:
        head = file.read(16)
        if set(head[13:15] if head[8:9] in (b"\0", b"\1") else head[9:11]) != {WORD}:
            raise InputError(f"{path}: its places and sizes must have {WORD} bytes each, as ITK writes them; copy the file again")
        for start in range(0, path.stat().st_size, PIECE):
            file.seek(start)
            piece = file.read(PIECE + len(HEAP) - 1)
            for match in re.finditer(re.escape(HEAP), piece):
                file.seek(start + match.start())
                size = int.from_bytes(file.read(2 * WORD)[WORD:], "little")
                if size > path.stat().st_size or not _is_sound_heap(file.read(max(0, size - 2 * WORD))):
                    raise InputError(f"{path}: the texts at byte {start + match.start()} are damaged; copy the file again")


def _is_sound_heap(objects: bytes) -> bool:
    """Whether the objects of a heap lie one behind the other: a number and a size, then as many bytes; object 0 is what is left."""
    at = 0
    while at + 2 * WORD <= len(objects):
        number, size = int.from_bytes(objects[at : at + 2], "little"), int.from_bytes(objects[at + WORD : at + 2 * WORD], "little")
        step = size if number == 0 else 2 * WORD + -(-size // WORD) * WORD
        if not 2 * WORD <= step <= len(objects) - at:
            return False
        at += step
    return True


def _child(path: Path, group: Any, name: str) -> Any:
    """A group or data set of a group. Raises InputError if it is a link to another place, which could be any file of the reader."""
    if not isinstance(group.get(name, getlink=True), _import_h5py().HardLink):
        raise InputError(f"{path}: {group.name}/{name} is a link, or missing; ITK's files hold their numbers themselves")
    return group[name]


def _read_entry(path: Path, entry: Any) -> Entry:
    """One transform; its parameters are empty if the group has none (the composite itself)."""
    kind = np.ravel(_read_values(path, entry, "TransformType"))
    if kind.size != 1:
        raise InputError(f"{path}: {entry.name} states {kind.size} types of transforms; one is expected")
    prefix = "Transform" if "TransformParameters" in entry else "Tranform"  # some versions of ITK misspell it
    names = (f"{prefix}Parameters", f"{prefix}FixedParameters")
    numbers = [_read_values(path, entry, n) if n in entry else np.zeros(0) for n in names]
    if any(x.dtype.kind not in "fiu" for x in numbers):
        raise InputError(f"{path}: the parameters of {entry.name} are no numbers; copy the file again")
    return Entry(kind[0].decode(), *(x.astype(np.float64).ravel() for x in numbers))


def _read_values(path: Path, entry: Any, name: str) -> np.ndarray:
    """The values of a data set. Its size is checked before anything is read, and it must lie in this file."""
    values = _child(path, entry, name)
    if values.external or values.is_virtual:
        raise InputError(f"{path}: {values.name} lies in other files; ITK's files hold their numbers themselves")
    size, stored = values.size * values.dtype.itemsize, values.id.get_storage_size()
    if size > MAX_GZIP_RATIO * stored:
        raise InputError(f"{path}: {values.name} promises {size} bytes, but the file holds {stored} of them; copy the file again")
    require_memory(COPIES * size, f"{path}: the transform of {values.size} numbers", "write it on a coarser grid")
    return np.asarray(values[()])
