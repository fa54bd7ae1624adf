"""FSL: FLIRT's matrices and FNIRT's fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdmm.io.files import finite_float32
from rdmm.io.nifti import encode_nifti, is_image_name, write_nifti
from rdmm.io.tools.start import Start, has_unnamed_vectors
from rdmm.io.vectors import (
    IMAGES,
    Space,
    affine_map,
    affine_matrix,
    apply_matrix,
    from_vectors,
    read_matrix,
    read_vectors,
    require_3d,
    voxel_indices,
    world_vectors,
    write_matrix,
)
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Transform
from rdmm.types import InputError

FIELD_INTENT, COEFFICIENT_INTENTS = 2006, range(2007, 2018)
"""NIfTI intents of FNIRT's displacement fields and spline coefficients."""


@dataclass(frozen=True)
class FSL:
    """FLIRT's matrices (moving -> fixed) and FNIRT's fields (fixed -> moving), in FSL's millimeters.

    These are measured from the first voxel along the voxel axes, with the first axis flipped if the affine's determinant is positive.
    """

    endings = (*IMAGES, ".mat")
    needs_images = True

    def recognises(self, start: Start) -> bool:
        return start.intent in (FIELD_INTENT, *COEFFICIENT_INTENTS) or has_unnamed_vectors(start) or start.numbers == 16

    def read(self, path: Path, space: Space) -> Transform:
        fixed, moving = space.both("FSL's transform")
        a, b = _fsl_to_world(fixed), _fsl_to_world(moving)
        if not is_image_name(path):
            return affine_map(path, b @ np.linalg.inv(read_matrix(path, (4, 4))) @ np.linalg.inv(a))
        values, grid, intent = read_vectors(path, fixed)
        if intent in COEFFICIENT_INTENTS:
            raise InputError(
                f"{path}: holds spline coefficients; convert them to a field: fnirtfileutils -i COEF -r REF -o FIELD --withaff"
            )
        x = apply_matrix(np.linalg.inv(a) @ np.asarray(grid.affine), voxel_indices(grid))
        absolute = values.std() > (values - x).std()  # FSL's own test: absolute fields vary more than relative ones
        ends = apply_matrix(b, values if absolute else x + values)
        return from_vectors(ends - apply_matrix(a, x), grid)

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        fixed, moving = space.both("FSL's transform")
        require_3d(fixed, "FSL")
        a, b = _fsl_to_world(fixed), _fsl_to_world(moving)
        if not is_image_name(path):
            matrix = np.linalg.inv(np.linalg.inv(b) @ affine_matrix(transform, path) @ a)
            return write_matrix(path, matrix)
        ends = fixed.voxel_to_world(voxel_indices(fixed)) + world_vectors(transform, fixed)
        x = apply_matrix(np.linalg.inv(a) @ np.asarray(fixed.affine), voxel_indices(fixed))
        field = finite_float32(path, apply_matrix(np.linalg.inv(b), ends) - x)
        write_nifti(path, encode_nifti(field, fixed, intent=FIELD_INTENT))


def _fsl_to_world(grid: Grid) -> np.ndarray:
    """(4, 4) matrix from FSL's millimeters to world millimeters (RAS+)."""
    require_3d(grid, "FSL")
    affine, scale, flip = np.asarray(grid.affine), np.diag([*grid.voxel, 1.0]), np.eye(4)
    if np.linalg.det(affine) > 0:
        flip[0, 0], flip[0, 3] = -1, (grid.shape[0] - 1) * grid.voxel[0]
    return affine @ np.linalg.inv(flip @ scale)
