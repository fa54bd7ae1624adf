"""The laws of images of other formats: the geometry is exact, voxels keep their values, and the gates are those of NIfTI."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import oblique

from rdmm import Grid
from rdmm.io.formats.simpleitk import from_sitk, is_sitk, to_sitk
from rdmm.types import OutputError

GRID = oblique((7, 6, 5), (1.0, 1.5, 2.0), flip=True)
RNG = np.random.default_rng(0)


def test_simpleitk_images_keep_voxels_and_geometry(tmp_path: Path) -> None:
    """As SimpleITK itself reads the NIfTI file of the same voxels, in both directions."""
    sitk = pytest.importorskip("SimpleITK")
    x = RNG.integers(-300, 300, GRID.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(x, np.asarray(GRID.affine)), tmp_path / "x.nii")
    array, affine = from_sitk(sitk.ReadImage(str(tmp_path / "x.nii")))
    assert array.dtype == np.int16 and np.array_equal(array, x) and np.abs(affine - np.asarray(GRID.affine)).max() < 1e-5
    again = to_sitk(x, np.asarray(GRID.affine))
    assert is_sitk(again) and not is_sitk(x)
    there, back = sitk.ReadImage(str(tmp_path / "x.nii")), from_sitk(again)
    assert np.allclose(again.GetDirection(), there.GetDirection(), atol=1e-6)
    assert np.allclose(again.GetOrigin(), there.GetOrigin(), atol=1e-5)
    assert np.array_equal(back[0], x) and np.abs(back[1] - np.asarray(GRID.affine)).max() < 1e-12


def test_simpleitk_images_of_two_axes_of_volumes_and_of_components() -> None:
    pytest.importorskip("SimpleITK")
    flat = oblique((7, 6), (1.0, 1.5))
    x = RNG.random((7, 6, 3)).astype(np.float32)
    image = to_sitk(x, np.asarray(flat.affine), components=True)
    assert image.GetDimension() == 2 and image.GetNumberOfComponentsPerPixel() == 3
    array, affine = from_sitk(image)
    assert np.array_equal(array, x) and np.allclose(Grid((7, 6), affine[np.ix_([0, 1, 3], [0, 1, 3])]).affine, flat.affine)
    volumes = RNG.random((*GRID.shape, 4))
    image = to_sitk(volumes, np.asarray(GRID.affine))
    assert image.GetDimension() == 4 and np.array_equal(from_sitk(image)[0], volumes)
    assert np.allclose(from_sitk(image)[1], GRID.affine)
    sheared = np.asarray(GRID.affine) @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(OutputError, match="sheared"):
        to_sitk(x[:, :, :, None].repeat(2, 3)[..., 0], sheared)
