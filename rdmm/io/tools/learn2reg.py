"""Learn2Reg's displacement fields."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdmm.io.files import finite_float32, require_file, write_atomically
from rdmm.io.nifti import encode_nifti, write_nifti
from rdmm.io.vectors import Space, from_vectors, read_vectors, voxel_indices, world_vectors
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Transform
from rdmm.types import InputError


@dataclass(frozen=True)
class Learn2Reg:
    """Submissions to Learn2Reg, .nii.gz or .npz: displacements (D, H, W, 3) in voxels, from each fixed voxel to its moving voxel."""

    def read(self, path: Path, space: Space) -> Transform:
        fixed, moving = space.both("Learn2Reg's displacement")
        values = _read_npz(path, fixed) if path.suffix == ".npz" else read_vectors(path, fixed)[0]
        x = voxel_indices(fixed)
        return from_vectors(moving.voxel_to_world(x + values) - fixed.voxel_to_world(x), fixed)

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        fixed, moving = space.both("Learn2Reg's displacement")
        x = voxel_indices(fixed)
        ends = fixed.voxel_to_world(x) + world_vectors(transform, fixed)
        field = finite_float32(path, moving.world_to_voxel(ends) - x)
        if path.suffix != ".npz":
            return write_nifti(path, encode_nifti(field, fixed))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, field)
        write_atomically(path, buffer.getvalue())


def _read_npz(path: Path, grid: Grid) -> np.ndarray:
    try:
        with np.load(require_file(path), allow_pickle=False) as content:
            values = np.asarray(content[content.files[0]], dtype=np.float64)
    except Exception as error:
        raise InputError(f"{path}: not an .npz file of numbers ({type(error).__name__}: {error})") from error
    if values.shape == (grid.ndim, *grid.shape):
        values = np.moveaxis(values, 0, -1)
    if values.shape != (*grid.shape, grid.ndim) or not np.isfinite(values).all():
        raise InputError(
            f"{path}: shape {values.shape}; finite numbers of shape {(*grid.shape, grid.ndim)} are expected, as in the fixed image"
        )
    return values
