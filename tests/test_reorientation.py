"""The law of reorientation: under y = R S x, with R a rotation and S symmetric, vectors become R^T v and tensors R^T D R, in any file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import oblique
from scipy.spatial.transform import Rotation

from rdmm import Grid, io, mapping
from rdmm.io.vectors import from_vectors
from rdmm.mapping.reorientation import LOWER, UPPER, polar_rotation
from rdmm.types import ConfigError

MOVING, FIXED = oblique((12, 11, 10), (1.0, 1.5, 2.0), flip=True), oblique((9, 10, 11), (1.5, 1.2, 1.0), angle=-0.6)
TURN = Rotation.from_rotvec([0.3, -0.5, 0.8]).as_matrix()
STRETCH = np.array([[1.1, 0.1, 0], [0.1, 0.9, 0.05], [0, 0.05, 1.2]])
LPS = np.diag([-1.0, -1.0, 1.0])
VECTOR = np.array([0.3, -1.2, 0.7])
TENSOR = np.array([[1.7, 0.2, -0.1], [0.2, 0.5, 0.3], [-0.1, 0.3, 0.4]])


@pytest.fixture(params=["affine", "warp"])
def transform(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """y = R S x about the center of the fixed image, to the center of the moving one."""
    a, b = FIXED.corners().mean(0), MOVING.corners().mean(0)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = TURN @ STRETCH, b - TURN @ STRETCH @ a
    if request.param == "affine":
        io.write_affine(tmp_path / "t.mat", matrix)
        return str(tmp_path / "t.mat")
    x = FIXED.voxel_to_world(np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in FIXED.shape), indexing="ij"), -1))
    io.write_warp(tmp_path / "t.nii.gz", from_vectors(x @ matrix[:3, :3].T + matrix[:3, 3] - x, FIXED).transform.displacement, FIXED)
    return str(tmp_path / "t.nii.gz")


def moved(folder: Path, numbers: np.ndarray, transform: str, *, fifth: bool, intent: int = 0, **options: object) -> np.ndarray:
    """The numbers in the middle of the result of an image that has the same numbers everywhere."""
    array = np.broadcast_to(numbers, (*MOVING.shape, *((1,) if fifth else ()), len(numbers))).astype(np.float32)
    image = nib.Nifti1Image(array, np.asarray(MOVING.affine))
    image.header["intent_code"] = intent
    nib.save(image, folder / "v.nii.gz")
    mapping.apply(folder / "v.nii.gz", transform, FIXED, folder / "o.nii.gz", reorient=True, overwrite=True, **options)
    found = nib.load(folder / "o.nii.gz")
    assert found.header["intent_code"] == intent and found.shape == (*FIXED.shape, *array.shape[3:])
    return np.asarray(found.dataobj)[4, 5, 5].ravel()


def fsl_axes(grid: Grid) -> np.ndarray:
    """FSL's axes of vectors: those of the voxels, of which the first is turned where they are right-handed."""
    axes = np.asarray(grid.affine)[:3, :3] / grid.voxel
    return axes * [-1 if np.linalg.det(axes) > 0 else 1, 1, 1]


def test_vectors(tmp_path: Path, transform: str) -> None:
    wanted = LPS @ TURN.T @ LPS @ VECTOR
    for intent in (1007, 0):
        assert np.allclose(moved(tmp_path, VECTOR, transform, fifth=True, intent=intent), wanted, atol=1e-5)
    wanted = fsl_axes(FIXED).T @ TURN.T @ fsl_axes(MOVING) @ VECTOR
    assert np.allclose(moved(tmp_path, VECTOR, transform, fifth=False), wanted, atol=1e-5)
    assert np.allclose(moved(tmp_path, VECTOR, transform, fifth=False, interpolation="bspline"), wanted, atol=1e-5)


def test_tensors(tmp_path: Path, transform: str) -> None:
    turn = LPS @ TURN.T @ LPS
    for places, intent in ((LOWER, 1005), (UPPER, 0)):
        found = moved(tmp_path, np.array([TENSOR[p] for p in places]), transform, fifth=True, intent=intent)
        assert np.allclose(found, [(turn @ TENSOR @ turn.T)[p] for p in places], atol=1e-5)
    turn = fsl_axes(FIXED).T @ TURN.T @ fsl_axes(MOVING)
    found = moved(tmp_path, np.array([TENSOR[p] for p in UPPER]), transform, fifth=False)
    assert np.allclose(found, [(turn @ TENSOR @ turn.T)[p] for p in UPPER], atol=1e-5)


@pytest.mark.parametrize("d", [2, 3])
def test_polar_decomposition(d: int) -> None:
    m = torch.eye(d, dtype=torch.float64)[..., None] + 0.4 * torch.randn(d, d, 200, dtype=torch.float64)
    m = m[..., torch.linalg.det(m.movedim(-1, 0)) > 0.05]
    u, _, v = torch.linalg.svd(m.movedim(-1, 0))
    assert torch.allclose(polar_rotation(m).movedim(-1, 0), u @ v, atol=1e-8)


@pytest.mark.fault(125)
def test_what_cannot_be_turned_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nib.save(nib.Nifti1Image(np.ones(MOVING.shape, np.float32), np.asarray(MOVING.affine)), tmp_path / "x.nii")
    with pytest.raises(ConfigError, match="holds 1 numbers a voxel"):
        mapping.apply(tmp_path / "x.nii", np.eye(4), FIXED, reorient=True)
    nib.save(nib.Nifti1Image(np.ones((*MOVING.shape, 1, 3), np.float32), np.asarray(MOVING.affine)), tmp_path / "v.nii")
    mapping.apply(tmp_path / "v.nii", np.eye(4), FIXED)
    assert "not turned: pass reorient=True" in caplog.text
    flat = oblique((12, 11), (1.0, 1.5))
    affine = np.eye(4)
    affine[np.ix_([0, 1, 3], [0, 1, 3])] = np.asarray(flat.affine)
    nib.save(nib.Nifti1Image(np.broadcast_to([1.0, 2.0], (12, 11, 1, 1, 2)).astype(np.float32), affine), tmp_path / "flat.nii")
    turn = np.array([[0, -1, 7.0 * 3], [1, 0, 0], [0, 0, 1]])
    found = mapping.apply(tmp_path / "flat.nii", turn, flat, reorient=True).data[0]
    assert np.allclose(found[:, found[0] != 0].T, [2, -1], atol=1e-5)
