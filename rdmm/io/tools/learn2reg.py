"""Learn2Reg's displacement fields."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from rdmm.io.files import finite_float32, require_file, write_atomically
from rdmm.io.nifti import encode_nifti, write_nifti
from rdmm.io.tools.start import Start, has_unnamed_vectors
from rdmm.io.vectors import IMAGES, Space, from_vectors, read_vectors, voxel_indices, world_vectors
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Transform
from rdmm.types import InputError


@dataclass(frozen=True)
class Learn2Reg:
    """Submissions to Learn2Reg, .nii.gz or .npz: displacements (D, H, W, 3) in voxels, from each fixed voxel to its moving voxel."""

    endings = (*IMAGES, ".npz")
    needs_images = True

    def recognises(self, start: Start) -> bool:
        return has_unnamed_vectors(start) or start.head.startswith(b"PK")

    def read(self, path: Path, space: Space) -> Transform:
        fixed, moving = space.both("Learn2Reg's displacement")
        values = _read_npz(path, fixed) if path.suffix.lower() == ".npz" else read_vectors(path, fixed)[0]
        x = voxel_indices(fixed)
        return from_vectors(moving.voxel_to_world(x + values) - fixed.voxel_to_world(x), fixed)

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        fixed, moving = space.both("Learn2Reg's displacement")
        x = voxel_indices(fixed)
        ends = fixed.voxel_to_world(x) + world_vectors(transform, fixed)
        field = finite_float32(path, moving.world_to_voxel(ends) - x)
        if path.suffix.lower() != ".npz":
            return write_nifti(path, encode_nifti(field, fixed))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, field)
        write_atomically(path, buffer.getvalue())


def _read_npz(path: Path, grid: Grid) -> np.ndarray:
    """The displacement in a .npz file, (*s, d). Its shape and type are checked before its numbers are read."""
    try:
        with zipfile.ZipFile(require_file(path)) as archive:
            if len(archive.namelist()) != 1:
                raise InputError(f"{path}: holds {len(archive.namelist())} arrays; one displacement is expected")
            with archive.open(archive.namelist()[0]) as stream:
                shape, dtype = _peek_array(path, stream)
                if shape not in ((*grid.shape, grid.ndim), (grid.ndim, *grid.shape)) or dtype.kind not in "fiu":
                    raise InputError(
                        f"{path}: {dtype} of shape {shape}; numbers of shape {(*grid.shape, grid.ndim)} are expected, as in the fixed image"
                    )
            with archive.open(archive.namelist()[0]) as stream:
                values = np.asarray(np.lib.format.read_array(stream, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not an .npz file of numbers ({type(error).__name__}: {error})") from error
    if not np.isfinite(values).all():
        raise InputError(f"{path}: the displacement has NaN or Inf; write it again with the tool that made it")
    return values if values.shape[-1] == grid.ndim else np.moveaxis(values, 0, -1)


def _peek_array(path: Path, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array of NumPy, from its header."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"{path}: an array in version {version} of NumPy's format; numbers are written in version 1 or 2")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
