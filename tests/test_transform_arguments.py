"""The laws of -t: a whole run stands for its transforms in their order, [X,1] is the inverse of any X, and inverses are exact."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import bump

from rdmm import Grid, io, mapping
from rdmm.cli.program import main
from rdmm.io.maps import read_inverse_maps, read_maps
from rdmm.io.transforms import expand
from rdmm.spatial.inverse import inverse
from rdmm.spatial.transform import Affine, Dense, Placed, compose_all
from rdmm.types import DivergenceError, InputError
from rdmm.workflows.job import Job


def warp(grid: Grid, size: float = 0.06) -> torch.Tensor:
    """A smooth displacement without folds, 0 at the edges; (1, d, *s) in domain units."""
    b = bump(grid, 0.15)
    return torch.cat([size * (k + 1) / grid.ndim * b for k in range(grid.ndim)], 1).float()


def turn(grid: Grid) -> np.ndarray:
    """An affine map of the world about the center of a grid."""
    matrix = np.eye(grid.ndim + 1)
    matrix[:2, :2] = [[0.9, 0.5], [-0.4, 1.1]]
    center = grid.corners().mean(0)
    matrix[:-1, -1] = center - matrix[:-1, :-1] @ center
    return matrix


def inner_points(grid: Grid) -> torch.Tensor:
    x = grid.identity(torch.zeros(1, dtype=torch.float64)).flatten(2)
    return grid.to_world(x[:, :, torch.randperm(x.shape[2])[:200]] * 0.5 + 0.25 * x.amax(2, keepdim=True))


@pytest.fixture
def run(tmp_path: Path, grid: Grid) -> Path:
    """A folder with the transforms of a run, as rdmm and ANTs name them."""
    folder = tmp_path / "out"
    folder.mkdir()
    io.write_warp(folder / "1Warp.nii.gz", warp(grid), grid)
    io.write_warp(folder / "1InverseWarp.nii.gz", -0.5 * warp(grid), grid)  # not the inverse: to see whether it is used
    io.write_affine(folder / "0GenericAffine.mat", turn(grid))
    (folder / "run.json").write_text("{}")
    return folder


def test_the_inverse_of_a_warp_is_exact(run: Path, grid: Grid) -> None:
    """To 1e-3 mm between the voxels, too, in both orders; the sibling InverseWarp is not used."""
    x = inner_points(grid)
    there = io.read_transform(f"{run}/1Warp.nii.gz")
    back = io.read_transform(f"[{run}/1Warp.nii.gz, 1]")
    assert float((there(x) - x).norm(dim=1).max()) > grid.voxel[0]
    for a, b in ((there, back), (back, there)):
        assert float((b(a(x)) - x).norm(dim=1).max()) < 1e-3 * grid.voxel[0]
    whole, again = io.read_transforms([f"{run}/1Warp.nii.gz", f"{run}/0GenericAffine.mat"]), io.read_transform(f"[{run}/1Warp.nii.gz,0]")
    assert torch.equal(again(x), there(x))
    assert float((inverse(whole, "w")(whole(x)) - x).norm(dim=1).max()) < 1e-3 * grid.voxel[0]


def test_steep_and_distant_warps_are_inverted(grid: Grid) -> None:
    """Expansion by 4 and more, where fixed-point iterations diverge; a warp that holds a turn and a shift, as composite warps do."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    steep = x.clone() * 0
    center = torch.tensor(grid.extent).view(1, -1, *(1,) * grid.ndim) / 2
    steep[:, 0] = 0.25 * torch.tanh(12 * (x - center)[:, 0]) * bump(grid, 0.3)[:, 0]
    moved = compose_all([Affine(torch.as_tensor(turn(grid)))])(grid.to_world(x)) + 30
    for u in (steep, grid.from_world(moved) - x):
        there = Placed(Dense(u, grid, "identity"), grid)
        points = inner_points(grid)
        assert float((inverse(there, "w")(there(points)) - points).norm(dim=1).max()) < 1e-3 * grid.voxel[0]


def test_outside_its_grid_the_inverse_is_the_identity_as_the_warp_is(grid: Grid) -> None:
    there = Placed(Dense(warp(grid), grid, "identity"), grid)
    far = torch.tensor(grid.corners()[1] + 50)[None, :, None]
    assert torch.allclose(inverse(there, "w")(far), far, atol=1e-9, rtol=0)


@pytest.mark.fault(58)
def test_a_fold_has_no_inverse(tmp_path: Path, grid: Grid) -> None:
    io.write_warp(tmp_path / "w.nii.gz", warp(grid, 2.0), grid)
    with pytest.raises(DivergenceError, match=r"w\.nii\.gz: .*cells fold"):
        io.read_transform(f"[{tmp_path}/w.nii.gz,1]")


def test_a_run_stands_for_its_transforms(run: Path, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inner_points(grid)
    for name in (f"{run}", f"{run}/", f"{run}/run.json"):
        assert expand(name) == [f"{run}/1Warp.nii.gz", f"{run}/0GenericAffine.mat"]
        assert expand(f"[{name},1]") == [f"[{run}/0GenericAffine.mat,1]", f"{run}/1InverseWarp.nii.gz"]
        assert expand(f"[{name},0]") == expand(name)
    by_hand = io.read_transforms([f"{run}/1Warp.nii.gz", f"{run}/0GenericAffine.mat"])
    assert torch.equal(io.read_transform(str(run))(x), by_hand(x))
    (run / "1InverseWarp.nii.gz").unlink()
    back = io.read_transform(f"[{run},1]")
    assert float((back(by_hand(x)) - x).norm(dim=1).max()) < 1e-3 * grid.voxel[0]
    for name in ("1Warp.nii.gz", "0GenericAffine.mat"):  # ANTs' prefix, seen from its folder
        shutil.copy(run / name, tmp_path / f"ants_{name}")
    monkeypatch.chdir(tmp_path)
    assert expand("ants_") == ["ants_1Warp.nii.gz", "ants_0GenericAffine.mat"]
    for name in ("0DerivedInitialMovingTranslation.mat", "1Rigid.mat", "2Affine.mat", "3Warp.nii.gz", "10Warp.nii.gz"):
        (tmp_path / f"many{name}").touch()
    assert [n[4:6] for n in expand("many")] == ["10", "3W", "2A", "1R", "0D"]
    io.read_transforms([str(run)])
    pytest.importorskip("h5py")
    whole = Path("h5_Composite.h5")
    mapping.compose([str(run)], whole, fixed=grid)
    assert expand("h5_") == ["h5_Composite.h5"] and expand("[h5_,1]") == ["[h5_Composite.h5,1]"]
    assert torch.allclose(io.read_transform("h5_")(x), by_hand(x), atol=1e-3)


@pytest.mark.fault(115)
def test_what_is_no_transform_is_said(run: Path, grid: Grid, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.float32), np.eye(4)), run / "Warped.nii.gz")
    (tmp_path / "empty").mkdir()
    for name, said in (
        (f"{run}/Warped.nii.gz", "give the transform of a run: its folder, or 1Warp.nii.gz and 0GenericAffine.mat"),
        (f"[{run}/Warped.nii.gz,1]", "give the transform of a run"),
        (f"{tmp_path}/empty", "no transform of a run"),
        (f"[{run},2]", r"write \[FILE,1\]"),
        (f"{run}/Wrap.nii.gz", "did you mean"),
        ("", "no such file|directory"),
    ):
        with pytest.raises(InputError, match=said):
            io.read_transform(name)


def test_jacobians_of_chains(run: Path, grid: Grid, tmp_path: Path) -> None:
    """det D(A ∘ W) = det A det D W at every voxel; the affine is in it only on request, and what is printed says so."""
    (run / "1InverseWarp.nii.gz").unlink()
    nib.save(nib.Nifti1Image(np.zeros(grid.shape, np.float32), affine_4(grid)), tmp_path / "r.nii.gz")

    def jacobian(*words: str, code: int = 0) -> tuple[np.ndarray | None, str]:
        out = tmp_path / "j.nii.gz"
        done = CliRunner().invoke(main, ["jacobian", *words, "-o", str(out), "--overwrite"], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return (nib.load(out).get_fdata().squeeze() if code == 0 else None), done.output

    alone, said = jacobian(f"{run}/1Warp.nii.gz")
    assert "affine: none in the transforms" in said and np.ptp(alone) > 0.1
    det = np.linalg.det(turn(grid))
    for words in (["-t", f"{run}/"], ["-t", f"{run}/1Warp.nii.gz", "-t", f"{run}/0GenericAffine.mat"], [f"{run}"]):
        found, said = jacobian(*words)
        assert "affine: not included" in said and np.allclose(found, alone, atol=1e-5)
        found, said = jacobian(*words, "--with-affine", "-r", str(tmp_path / "r.nii.gz"))
        assert "affine: included" in said and np.allclose(found, det * alone, atol=1e-4)
    assert np.allclose(np.exp(jacobian("-t", f"{run}", "--log")[0]), alone, atol=1e-5)
    twice = jacobian("-t", f"{run}/1Warp.nii.gz", "-t", f"[{run}/1Warp.nii.gz,1]")[0]
    assert np.allclose(twice, 1, atol=1e-3)
    affine = f"{run}/0GenericAffine.mat"
    assert np.allclose(jacobian(affine, "--with-affine", "-r", str(tmp_path / "r.nii.gz"))[0], det, atol=1e-5)
    assert "--with-affine" in jacobian(affine, code=2)[1] and "once" in jacobian(affine, "-t", affine, code=2)[1]


def affine_4(grid: Grid) -> np.ndarray:
    affine = np.eye(4)
    affine[np.ix_([*range(grid.ndim), 3], [*range(grid.ndim), 3])] = np.asarray(grid.affine)
    return affine


@pytest.mark.fault(58)
def test_a_few_folded_cells_are_said_and_inverted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grid = Grid((120, 110), np.diag([1.0, 1.0, 1.0]))
    u = torch.zeros(1, 2, *grid.shape)
    u[0, 0, 50, 50] = 1.3 * grid.spacing[0]
    io.write_warp(tmp_path / "w.nii.gz", u, grid)
    there, back = io.read_transform(f"{tmp_path}/w.nii.gz"), io.read_transform(f"[{tmp_path}/w.nii.gz,1]")
    assert "cells fold" in caplog.text
    x = grid.to_world(grid.identity(torch.zeros(1, dtype=torch.float64)))
    assert float((there(back(x)) - x).norm(dim=1).max()) < 1e-2


def test_the_option_invert_and_brackets_agree(run: Path, grid: Grid, tmp_path: Path) -> None:
    """A whole run by its InverseWarp, its files one by one by inversion; a Registration by its own inverse."""
    x = inner_points(grid)
    files = [f"{run}/1Warp.nii.gz", f"{run}/0GenericAffine.mat"]
    assert torch.equal(read_inverse_maps(str(run))(x), io.read_transform(f"[{run},1]")(x))
    assert not torch.allclose(read_inverse_maps(files)(x), read_inverse_maps(run)(x), atol=1e-3)
    assert torch.allclose(read_inverse_maps(files)(io.read_transforms(files)(x)), x, atol=1e-3)
    assert torch.allclose(mapping.invert([*files, turn(grid)])(read_maps([*files, turn(grid)])(x)), x, atol=1e-3)
    assert torch.equal(mapping.invert(run)(x), io.read_transform(f"[{run},1]")(x))


def test_a_run_as_start_is_recorded_by_its_files(run: Path, tmp_path: Path) -> None:
    for given in (f"{run}", [f"{run}/"]):
        job = Job("f.nii", "m.nii", "o/", inputs={"initial": given})
        assert job.given_inputs["initial"] == [f"{run}/1Warp.nii.gz", f"{run}/0GenericAffine.mat"]
        assert f"--initial {run}/1Warp.nii.gz --initial {run}/0GenericAffine.mat" in job.command
    back = Job("f.nii", "m.nii", "o/", inputs={"initial": [f"[{run},1]"]}).given_inputs["initial"]
    assert back == [f"[{run}/0GenericAffine.mat,1]", f"{run}/1InverseWarp.nii.gz"]
