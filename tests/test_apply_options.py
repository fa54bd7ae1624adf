"""The laws of ``rdmm apply`` beside those of its geometry: interpolations are those of ITK, types and headers are kept, labels noticed."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import oblique
from scipy.ndimage import gaussian_filter

from rdmm import Grid, Image, io, mapping
from rdmm.cli.program import main
from rdmm.io.vectors import from_vectors

RNG = np.random.default_rng(0)
GRIDS = {"2d": oblique((26, 22), (1.0, 1.4)), "3d": oblique((16, 15, 14), (1.0, 1.5, 2.0), flip=True)}


def smooth(shape: tuple[int, ...], scale: float = 100) -> np.ndarray:
    x = gaussian_filter(RNG.normal(size=shape), 1.2)
    return scale * (x - x.min()) / np.ptp(x)


def regions(shape: tuple[int, ...]) -> np.ndarray:
    names = np.array([0, 3, 7, 12, 40])
    return names[np.stack([gaussian_filter(RNG.normal(size=shape), 2.5) for _ in names]).argmax(0)].astype(np.int16)


def save(path: Path, array: np.ndarray, grid: Grid) -> str:
    affine = np.eye(4)
    affine[np.ix_([*range(grid.ndim), 3], [*range(grid.ndim), 3])] = np.asarray(grid.affine)
    nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)
    return str(path)


class Case:
    """A warp and an affine, and a reference that is larger than the image."""

    def __init__(self, folder: Path, grid: Grid) -> None:
        self.folder, self.grid, d = folder, grid, grid.ndim
        vectors = np.stack([gaussian_filter(RNG.normal(size=grid.shape), 3) * 15 for _ in range(d)], -1).astype(np.float32)
        io.write_warp(folder / "1Warp.nii.gz", from_vectors(vectors, grid).transform.displacement, grid)
        matrix = np.eye(d + 1)
        matrix[:2, :2] = [[0.98, 0.2], [-0.15, 1.05]]
        center = grid.corners().mean(0)
        matrix[:-1, -1] = center - matrix[:-1, :-1] @ center + 1.3
        io.write_affine(folder / "0GenericAffine.mat", matrix)
        change = np.eye(d + 1)
        change[:-1, -1] = -3.3
        larger = Grid(tuple(n + 5 for n in grid.shape), np.asarray(grid.affine) @ change)
        self.reference = save(folder / "r.nii.gz", np.zeros(larger.shape, np.uint8), larger)

    def apply(self, image: str, *words: str, code: int = 0) -> tuple[nib.Nifti1Image | None, str]:
        out = str(self.folder / f"o{len(list(self.folder.iterdir()))}.nii.gz")
        done = CliRunner().invoke(
            main, ["apply", image, "-t", f"{self.folder}/", "-r", self.reference, "-o", out, *words], catch_exceptions=False
        )
        assert done.exit_code == code, done.output
        return (nib.load(out) if code == 0 else None), done.output

    def itk(self, image: str, mode: int, value: float = 0.0) -> np.ndarray:
        import SimpleITK as sitk

        field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(self.folder / "1Warp.nii.gz"), sitk.sitkVectorFloat64))
        both = sitk.CompositeTransform([sitk.ReadTransform(str(self.folder / "0GenericAffine.mat")), field])
        moved = sitk.Resample(sitk.ReadImage(image), sitk.ReadImage(self.reference), both, mode, value)
        return sitk.GetArrayFromImage(moved).T


@pytest.fixture(params=GRIDS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, GRIDS[request.param])


def test_interpolations_are_those_of_itk(case: Case) -> None:
    sitk = pytest.importorskip("SimpleITK")
    x, labels = save(case.folder / "x.nii.gz", smooth(case.grid.shape).astype(np.float32), case.grid), regions(case.grid.shape)
    names = save(case.folder / "l.nii.gz", labels, case.grid)
    for name, mode in (("linear", sitk.sitkLinear), ("bspline", sitk.sitkBSpline), ("sinc", sitk.sitkHammingWindowedSinc)):
        found = case.apply(x, "--interpolation", name)[0].get_fdata()
        wrong = np.abs(found - case.itk(x, mode)) > 1e-4 * 100
        assert wrong.mean() < 2e-3, name  # voxels on the edge of the field of view, to rounding
        assert 0.1 < (found == 0).mean() < 0.7
    for words, mode in ((["--labels"], sitk.sitkNearestNeighbor), (["--interpolation", "generic-label"], sitk.sitkLabelLinear)):
        found = np.asarray(case.apply(names, *words)[0].dataobj)
        assert (found != case.itk(names, mode)).mean() < 2e-3 and set(np.unique(found)) <= set(np.unique(labels))


@pytest.mark.fault(9)
def test_voxels_without_a_value_have_no_influence(case: Case) -> None:
    x = smooth(case.grid.shape).astype(np.float32)
    hole = np.zeros(case.grid.shape, bool)
    hole[5:9, 5:9] = True
    known = save(case.folder / "x.nii.gz", x, case.grid)
    x[hole] = np.nan
    name = save(case.folder / "n.nii.gz", x, case.grid)
    for mode in ("linear", "nearest", "bspline", "sinc"):
        found, whole = (np.asarray(case.apply(n, "--interpolation", mode)[0].dataobj) for n in (name, known))
        assert 0.01 < np.isnan(found).mean() < 0.3
        assert np.nanmax(np.abs(found - whole)) < (40 if mode in ("bspline", "sinc") else 100)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"])
def test_the_type_of_the_image_is_kept(dtype: str, tmp_path: Path) -> None:
    case = Case(tmp_path, GRIDS["2d"])
    x = smooth(case.grid.shape).astype(dtype)
    large = 16777217 if np.dtype(dtype).itemsize > 4 or dtype in ("int32", "uint32") else 0  # float32 cannot hold it
    name = save(tmp_path / "x.nii.gz", x + np.dtype(dtype).type(large), case.grid)
    found = np.asarray(case.apply(name, "--default-value", "7")[0].dataobj)
    floats = np.asarray(case.apply(save(tmp_path / "f.nii.gz", x.astype(np.float64), case.grid), "--default-value", "-1")[0].dataobj)
    inside = floats != -1
    assert found.dtype == dtype and (found[~inside] == 7).all()
    assert np.abs(found[inside].astype(np.float64) - large - floats[inside]).max() <= (0.5 + 1e-6 if x.dtype.kind in "iu" else 1e-4)


@pytest.mark.fault(116)
def test_what_does_not_fit_a_type_is_widened_or_refused(tmp_path: Path) -> None:
    case = Case(tmp_path, GRIDS["2d"])
    x = np.where(smooth(case.grid.shape) > 50, 255, 0) + RNG.integers(0, 2, case.grid.shape)
    name = save(tmp_path / "x.nii.gz", np.minimum(x, 255).astype(np.uint8), case.grid)
    wider, said = case.apply(name, "--interpolation", "bspline")
    assert wider.get_data_dtype() == np.int16 and "do not fit the input's type uint8" in said
    for words in (["--default-value", "300"], ["--interpolation", "bspline"]):
        assert "pass --dtype int16" in case.apply(name, "--dtype", "uint8", *words, code=3)[1]
    assert case.apply(name, "--dtype", "float64")[0].get_data_dtype() == np.float64
    assert "did you mean 'float32'" in case.apply(name, "--dtype", "float23", code=2)[1]
    assert "did you mean 'bspline'" in case.apply(name, "--interpolation", "spline", code=2)[1]
    assert "mixes the numbers of labels" in case.apply(name, "--interpolation", "linear", "--labels", code=2)[1]


def test_scaled_integers_keep_their_values(tmp_path: Path) -> None:
    case = Case(tmp_path, GRIDS["3d"])
    x = smooth(case.grid.shape, 1)
    image = nib.Nifti1Image(x, np.asarray(case.grid.affine), dtype=np.int16)
    nib.save(image, tmp_path / "scaled.nii.gz")
    assert nib.load(tmp_path / "scaled.nii.gz").dataobj.slope != 1
    found = case.apply(str(tmp_path / "scaled.nii.gz"))[0]
    wanted = case.apply(save(tmp_path / "x.nii.gz", x.astype(np.float32), case.grid))[0]
    assert found.get_data_dtype() == np.float32 and np.abs(found.get_fdata() - wanted.get_fdata()).max() < 1e-4


def test_volumes_keep_their_time(tmp_path: Path) -> None:
    case = Case(tmp_path, GRIDS["3d"])
    x = np.stack([smooth(case.grid.shape) for _ in range(3)], -1).astype(np.int16)
    image = nib.Nifti1Image(x, np.asarray(case.grid.affine))
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4], image.header["toffset"] = 2500, 12
    nib.save(image, tmp_path / "x.nii.gz")
    found = case.apply(str(tmp_path / "x.nii.gz"))[0]
    assert found.shape[3] == 3 and found.header.get_xyzt_units() == ("mm", "msec") and found.get_data_dtype() == np.int16
    assert found.header["pixdim"][4] == 2500 and found.header["toffset"] == 12
    one = case.apply(str(tmp_path / "x.nii.gz"), "--volume", "1")[0]
    assert one.ndim == 3 and np.array_equal(np.asarray(one.dataobj), np.asarray(found.dataobj)[..., 1])


def test_colors_and_components_are_moved_one_by_one(case: Case) -> None:
    x = np.stack([smooth(case.grid.shape, 255) for _ in range(3)], -1).astype(np.uint8)
    colors = np.ascontiguousarray(x).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    found = np.asarray(case.apply(save(case.folder / "rgb.nii.gz", colors, case.grid))[0].dataobj)
    alone = [np.asarray(case.apply(save(case.folder / "x.nii.gz", x[..., k].copy(), case.grid))[0].dataobj) for k in range(3)]
    assert all(np.array_equal(found[c].reshape(alone[0].shape), alone[k]) for k, c in enumerate("RGB"))


@pytest.mark.fault(117)
def test_labels_without_the_option_are_noticed(case: Case) -> None:
    labels = regions(case.grid.shape)
    for dtype in (np.int16, np.float32):
        name = save(case.folder / "l.nii.gz", labels.astype(dtype), case.grid)
        found, said = case.apply(name, "--json")
        printed = json.loads(said[said.index("{") :])
        assert "looks like a label map" in said.split("{")[0] and "--labels" in printed["warnings"][0]
        assert found.get_data_dtype() == dtype and set(np.unique(found.dataobj)) <= set(np.unique(labels))
        mixed, said = case.apply(name, "--interpolation", "linear", "--dtype", "float32")
        assert "looks like" not in said and not set(np.unique(mixed.dataobj)) <= set(np.unique(labels))
    assert "looks like" not in case.apply(save(case.folder / "x.nii.gz", smooth(case.grid.shape).astype(np.int16), case.grid))[1]


def test_python_gives_the_same(tmp_path: Path) -> None:
    case = Case(tmp_path, GRIDS["3d"])
    x = smooth(case.grid.shape).astype(np.int16)
    name = save(tmp_path / "x.nii.gz", x, case.grid)
    wanted = np.asarray(case.apply(name, "--interpolation", "bspline")[0].dataobj)
    for image in (name, nib.load(name), Image(__import__("torch").from_numpy(x)[None, None], case.grid)):
        found = mapping.apply(image, tmp_path, case.reference, interpolation="bspline").numpy()
        assert found.dtype == np.int16 and np.array_equal(found, wanted)
