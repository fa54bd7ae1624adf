"""AFNI: .aff12.1D matrices and warps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdmm.io.files import finite_float32
from rdmm.io.nifti import DISPLACEMENT_INTENT, encode_nifti, is_image_name, write_nifti
from rdmm.io.tools.start import Start, has_unnamed_vectors
from rdmm.io.vectors import (
    IMAGES,
    Space,
    affine_map,
    affine_matrix,
    choose_grid,
    from_vectors,
    ras_to_lps,
    read_matrix,
    read_vectors,
    require_3d,
    world_vectors,
    write_matrix,
)
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Transform
from rdmm.types import ConfigError, InputError


@dataclass(frozen=True)
class AFNI:
    """AFNI's affines (.aff12.1D) and warps, fixed -> moving, in DICOM (LPS) millimeters.

    Affines ignore that an image is oblique, as AFNI does.
    """

    endings = (*IMAGES, ".1d")
    needs_images = True

    def recognises(self, start: Start) -> bool:
        return has_unnamed_vectors(start) or start.path.suffix.lower() == ".1d" or start.text.startswith("# 3dvolreg matrices")

    def read(self, path: Path, space: Space) -> Transform:
        if is_image_name(path):
            values, grid, _ = read_vectors(path, space.fixed)
            _require_axis_aligned(grid)
            return from_vectors(values @ ras_to_lps(3)[:3, :3], grid)
        parameters = read_matrix(path, (3, 4))
        linear = _import_linear_class()()
        linear.structarr["parameters"] = parameters
        return affine_map(path, np.asarray(linear.to_ras(*_nibabel_images(space))))

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        if not is_image_name(path):
            linear = _import_linear_class().from_ras(affine_matrix(transform, path), *_nibabel_images(space))
            rows = np.asarray(linear.structarr["parameters"])[:3]
            return write_matrix(path, rows.reshape(1, 12), "# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n")
        grid = choose_grid(transform, space)
        _require_axis_aligned(grid)
        field = world_vectors(transform, grid) @ ras_to_lps(3)[:3, :3]
        write_nifti(path, encode_nifti(finite_float32(path, field), grid, intent=DISPLACEMENT_INTENT))


def _import_linear_class() -> Any:
    try:
        from nitransforms.io.afni import AFNILinearTransform
    except ImportError as error:
        raise ConfigError("AFNI's affines need nitransforms: pip install 'rdmm[formats]'") from error
    return AFNILinearTransform


def _nibabel_images(space: Space) -> tuple[Any, Any]:
    """Empty images with the affines of the moving and the fixed image, in this order: nitransforms uses nothing else."""
    import nibabel as nib

    fixed, moving = space.both("AFNI's affine")
    require_3d(fixed, "AFNI")
    images = [nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.asarray(g.affine)) for g in (moving, fixed)]
    return images[0], images[1]


def _require_axis_aligned(grid: Grid) -> None:
    """Raise InputError for an oblique grid. AFNI's vectors are along the image's axes; rdmm reads them along the world's axes."""
    require_3d(grid, "AFNI")
    directions = np.abs(grid.directions)
    if np.abs(directions - directions.round()).max() > 2e-4:
        raise InputError(
            "AFNI's warps on oblique grids cannot be read or written; resample the fixed image along the world's axes (3dWarp -deoblique)"
        )
