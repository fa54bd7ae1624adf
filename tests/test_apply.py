"""The laws of ``rdmm apply``: what lies outside is 0 or what is asked for, NaN stays NaN, every volume is moved alike."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import oblique

import rdmm
from rdmm import Grid, Image, io
from rdmm.cli.program import main
from rdmm.io.vectors import from_vectors
from rdmm.spatial.transform import Affine, Identity, framed

GRID = oblique((12, 11, 10), (1.0, 1.5, 2.0))
RNG = np.random.default_rng(0)


def save(path: Path, array: np.ndarray, grid: Grid = GRID) -> str:
    nib.save(nib.Nifti1Image(array, np.asarray(grid.affine), dtype=array.dtype), path)
    return str(path)


def stored(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def shift(tmp_path: Path) -> str:
    """A translation by 2.5 voxels along the first axis."""
    matrix = np.eye(4)
    matrix[:3, 3] = 2.5 * np.asarray(GRID.affine)[:3, 0]
    io.write_affine(tmp_path / "shift.mat", matrix)
    return str(tmp_path / "shift.mat")


@pytest.fixture
def identity(tmp_path: Path) -> str:
    io.write_affine(tmp_path / "id.mat", np.eye(4))
    return str(tmp_path / "id.mat")


def apply(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["apply", *words], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.fault(105)
def test_outside_the_field_of_view_is_the_default_value(tmp_path: Path, shift: str) -> None:
    """Half a voxel beyond the last centers is still inside, with the edge's value, as ITK counts it."""
    x = RNG.random(GRID.shape, dtype=np.float32) + 1
    name = save(tmp_path / "x.nii.gz", x)
    inside = (x[2:-1] + x[3:]) / 2
    for words, value in (([], 0.0), (["--default-value", "-7.5"], -7.5)):
        apply(name, "-t", shift, "-r", name, "-o", str(tmp_path / "o.nii.gz"), "--overwrite", *words)
        found = stored(tmp_path / "o.nii.gz")
        assert np.allclose(found[:9], inside, atol=1e-5) and np.allclose(found[9], x[-1], atol=1e-5) and (found[10:] == value).all()
    labels = (x * 100).astype(np.uint16)
    name = save(tmp_path / "l.nii.gz", labels)
    apply(name, "--labels", "-t", shift, "-r", name, "-o", str(tmp_path / "k.nii.gz"), "--default-value", "3000000000")
    assert (stored(tmp_path / "k.nii.gz")[10:] == 3000000000).all()
    assert "whole number" in apply(
        name, "--labels", "-t", shift, "-r", name, "-o", str(tmp_path / "m.nii"), "--default-value", ".5", code=2
    )
    for bad in ("nan", "inf", "-inf", "1e400", "x"):
        apply(name, "-t", shift, "-r", name, "-o", str(tmp_path / "m.nii"), "--default-value", bad, code=2)


@pytest.mark.fault(105)
def test_outside_is_what_itk_says(tmp_path: Path, shift: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    x = RNG.random(GRID.shape, dtype=np.float32) + 1
    larger = Grid((20, 18, 17), np.asarray(GRID.affine) @ np.array([[1, 0, 0, -3.3], [0, 1, 0, -4.2], [0, 0, 1, -3.1], [0, 0, 0, 1]]))
    name, reference = save(tmp_path / "x.nii.gz", x), save(tmp_path / "r.nii.gz", np.zeros(larger.shape, np.float32), larger)
    vectors = RNG.normal(size=(*GRID.shape, 3)).astype(np.float32)
    u = from_vectors(vectors, GRID).transform.displacement
    io.write_warp(tmp_path / "warp.nii.gz", u, GRID)
    said = apply(name, "-t", str(tmp_path / "warp.nii.gz"), "-t", shift, "-r", reference, "-o", str(tmp_path / "o.nii.gz"))
    assert "% of the reference" in said and "identity" in said
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "warp.nii.gz"), sitk.sitkVectorFloat64))
    affine = sitk.ReadTransform(shift)
    both = sitk.CompositeTransform([affine, field])
    wanted = sitk.Resample(sitk.ReadImage(name), sitk.ReadImage(reference), both, sitk.sitkLinear, 0.0)
    wanted, found = sitk.GetArrayFromImage(wanted).T, stored(tmp_path / "o.nii.gz")
    assert (np.abs(found - wanted) > 1e-3).mean() < 2e-3  # voxels on the edge of the field of view, to rounding


@pytest.mark.fault(105)
def test_a_warp_of_a_file_is_the_identity_outside_its_grid(tmp_path: Path, grid: Grid) -> None:
    u = torch.ones(1, grid.ndim, *grid.shape)
    io.write_warp(tmp_path / "w.nii.gz", u, grid)
    read = framed(io.read_transform(str(tmp_path / "w.nii.gz")), grid)
    h, far = (torch.tensor(v).view(1, -1, 1) for v in (grid.spacing, grid.extent))
    for k, inside in ((0.45, True), (0.55, False)):
        points = torch.cat([-k * h, far + k * h, far / 2], 2)
        moved = (read(points) - points).abs().amax(1)[0] > 0.5
        assert moved.tolist() == [inside, inside, True]


@pytest.mark.fault(105)
def test_points_outside_a_warp_stay_and_are_counted(tmp_path: Path) -> None:
    io.write_warp(tmp_path / "w.nii.gz", torch.full((1, 3, *GRID.shape), 0.1), GRID)
    center = GRID.corners().mean(0)
    (tmp_path / "p.csv").write_text("x,y,z\n-900,0,0\n" + ",".join(map(str, center)) + "\n")
    done = CliRunner().invoke(main, ["points", str(tmp_path / "p.csv"), "-t", str(tmp_path / "w.nii.gz"), "-o", str(tmp_path / "q.csv")])
    assert done.exit_code == 0 and "50 % of the points" in done.output
    moved = io.read_points(tmp_path / "q.csv", 3).points
    assert np.allclose(moved[0], [-900, 0, 0]) and np.abs(moved[1] - center).max() > 0.5


@pytest.mark.fault(9, 89)
def test_nan_stays_and_its_neighbors_are_weighted(tmp_path: Path, shift: str, identity: str) -> None:
    x = np.full(GRID.shape, 5, np.float32)
    x[4:6] = np.nan
    name = save(tmp_path / "x.nii.gz", x)
    assert "NaN" in apply(name, "-t", identity, "-r", name, "-o", str(tmp_path / "i.nii.gz"))
    assert np.array_equal(stored(tmp_path / "i.nii.gz"), x, equal_nan=True)
    matrix = np.eye(4)
    matrix[:3, 3] = 0.4 * np.asarray(GRID.affine)[:3, 0]
    io.write_affine(tmp_path / "small.mat", matrix)
    apply(name, "-t", str(tmp_path / "small.mat"), "-r", name, "-o", str(tmp_path / "s.nii.gz"))
    found = stored(tmp_path / "s.nii.gz")
    assert np.isnan(found[4:6]).all() and np.allclose(np.delete(found, [4, 5], 0), 5)


@pytest.mark.fault(18)
def test_every_volume_is_moved_as_it_would_be_alone(tmp_path: Path, shift: str) -> None:
    x = RNG.random((*GRID.shape, 3), dtype=np.float32)
    name = save(tmp_path / "x.nii.gz", x)
    reference = save(tmp_path / "r.nii.gz", x)
    apply(name, "-t", shift, "-r", reference, "-o", str(tmp_path / "all.nii.gz"))
    found = stored(tmp_path / "all.nii.gz")
    assert found.shape == x.shape
    for k in range(3):
        apply(name, "-t", shift, "-r", reference, "-o", str(tmp_path / "one.nii.gz"), "--volume", str(k), "--overwrite")
        assert np.array_equal(stored(tmp_path / "one.nii.gz"), found[..., k])
    ids = (x * 2**32).astype(np.uint32)
    name = save(tmp_path / "l.nii.gz", ids)
    apply(name, "--labels", "-t", shift, "-r", reference, "-o", str(tmp_path / "ids.nii.gz"))
    assert set(np.unique(stored(tmp_path / "ids.nii.gz"))) <= set(np.unique(ids)) | {0}
    assert "no such volume" in apply(name, "-t", shift, "-r", reference, "-o", str(tmp_path / "x.nii"), "--volume", "3", code=3)
    x[0, 0, 0, 1] = np.nan
    apply(save(tmp_path / "n.nii.gz", x), "-t", shift, "-r", reference, "-o", str(tmp_path / "nan.nii.gz"))
    assert np.array_equal(stored(tmp_path / "nan.nii.gz")[..., 0], found[..., 0])


@pytest.mark.fault(9, 22)
@pytest.mark.parametrize("kind", ["rgb", "nan", "complex", "volumes", "vectors"])
def test_only_the_grid_of_a_reference_counts(kind: str, tmp_path: Path, identity: str) -> None:
    x = RNG.random(GRID.shape, dtype=np.float32)
    array = {
        "rgb": np.zeros(GRID.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]),
        "nan": np.full(GRID.shape, np.nan, np.float32),
        "complex": x.astype(np.complex64),
        "volumes": np.stack([x, x], -1),
        "vectors": np.stack([x, x, x], -1)[:, :, :, None],
    }[kind]
    name, reference = save(tmp_path / "x.nii.gz", x), save(tmp_path / "r.nii.gz", array)
    apply(name, "-t", identity, "-r", reference, "-o", str(tmp_path / "o.nii.gz"))
    assert np.allclose(stored(tmp_path / "o.nii.gz"), x, atol=1e-5)


@pytest.mark.fault(9, 18)
def test_no_message_names_an_option_that_the_command_does_not_have(tmp_path: Path, identity: str) -> None:
    x = RNG.random((*GRID.shape, 2), dtype=np.float32)
    volumes = save(tmp_path / "v.nii.gz", x)
    x[0, 0, 0, 0] = np.nan
    nan = save(tmp_path / "n.nii.gz", np.ascontiguousarray(x[..., 0]))
    out = str(tmp_path / "o.nii.gz")
    for words in (["barycenter", volumes, "-o", out], ["barycenter", nan, "-o", out], ["transfer", nan, nan, nan, "-o", out],
                  ["apply", nan, "--labels", "-t", identity, "-r", nan, "-o", out], ["info", volumes]):  # fmt: skip
        said = CliRunner().invoke(main, words).output
        assert not {"--nan", "--volume", "--strict"} & set(said.replace(";", " ").split())


@pytest.mark.fault(105)
def test_registration_writes_0_outside_the_field_of_view() -> None:
    """The maps do not change: only what is shown and written of the moving image outside its field of view."""
    shape = (24, 20)
    grid = Grid(shape, np.eye(3))
    a, b = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    data = torch.exp(-3 * (a**2 + b**2))[None, None] + 1
    moved = np.eye(3)
    moved[0, 2] = 4
    done = rdmm.register(fixed=Image(data, grid), moving=Image(data, Grid(shape, moved)), affine="none",
                         dynamics="svf", optimizer__iterations=[1], optimizer__scales=[1.0])  # fmt: skip
    edge = done.pair.moved_by(done.result.transform)
    points = done.pair.moving.locate(done.result.transform(grid.identity(data)), grid)
    inside = done.pair.moving.grid.contains(points)
    assert 0.1 < float((~inside).float().mean()) < 0.5
    assert torch.equal(done.warped.data, torch.where(inside, edge.data, 0.0))
    assert (done.inverse_warped.data == 0).any()


@pytest.mark.fault(105)
def test_outside_of_an_image_in_memory(grid: Grid) -> None:
    image = Image(torch.ones(1, 1, *grid.shape), grid)
    matrix = torch.eye(grid.ndim + 1)
    matrix[:-1, -1] = 0.4
    far = Affine(matrix)
    kept, marked = image.moved_by(far), image.moved_by(far, outside=-2.0)
    assert bool((kept.data == 1).all()) and set(marked.data.unique().tolist()) == {-2.0, 1.0}
    assert torch.equal(image.moved_by(Identity(), outside=-2.0).data, image.data)
