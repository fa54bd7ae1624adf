"""``--initial``: several transforms are composed, recorded, and found again; chains are judged as a whole; a fold has no inverse."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import blobs, oblique

from rdmm import io, metrics
from rdmm.cli import main
from rdmm.data.inputs import read_inputs
from rdmm.io.transforms import write_transform
from rdmm.io.vectors import Space
from rdmm.spatial.transform import Affine, Dense, Placed, compose_all, displacement, framed
from rdmm.types import ConfigError, DivergenceError, InputError
from rdmm.workflows import transforms as commands
from rdmm.workflows.job import Job

GRIDS = {"2d": oblique((20, 18), (1.0, 1.4)), "3d": oblique((14, 12, 10), (1.0, 1.5, 2.0))}
QUICK = ["affine=none", "dynamics=svf", "optimizer.iterations=[1,1,1]"]


@pytest.fixture(params=GRIDS)
def case(request, tmp_path):
    """An image and three transforms that do not commute, as files."""
    grid = GRIDS[request.param]
    d = grid.ndim
    turn = np.eye(d + 1)
    turn[:2, :2] = [[0.98, -0.199], [0.199, 0.98]]
    shift = np.eye(d + 1)
    shift[:d, d] = 1.5
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    warp = Placed(Dense(0.02 * torch.sin(6 * x).flip(1), grid), grid)
    names = {k: str(tmp_path / k) for k in ("f.nii.gz", "m.nii.gz", "turn.mat", "shift.txt", "warp.nii.gz", "c.h5")}
    io.write_image(names["f.nii.gz"], blobs(grid), grid)
    io.write_image(names["m.nii.gz"], blobs(grid, 1), grid)
    write_transform(names["turn.mat"], Affine(torch.as_tensor(turn)), None, Space())
    write_transform(names["shift.txt"], Affine(torch.as_tensor(shift)), None, Space())
    write_transform(names["warp.nii.gz"], warp, None, Space())
    write_transform(names["c.h5"], compose_all([warp, Affine(torch.as_tensor(turn))]), None, Space())
    return grid, names


@pytest.mark.fault(92)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_initial_is_applied_first(case, count):
    grid, names = case
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    for chosen in itertools.permutations(["turn.mat", "shift.txt", "warp.nii.gz"], count):
        files = [names[k] for k in chosen]
        given = read_inputs(names["f.nii.gz"], names["m.nii.gz"], initial=files if count > 1 else files[0])
        y = grid.to_world(x)
        for name in files:
            y = io.read_transform(name)(y)
        canonical = given.pair.fixed.grid
        assert torch.allclose(given.pair.initial(canonical.from_world(grid.to_world(x))), canonical.from_world(y), atol=1e-6)
        assert [given.files[k] for k in given.files if k.startswith("initial")] == files


@pytest.mark.fault(92)
def test_several_initial_are_recorded_and_found_again(tmp_path):
    grid = GRIDS["2d"]
    names = {k: str(tmp_path / k) for k in ("f.nii.gz", "m.nii.gz", "a.mat", "b.mat")}
    io.write_image(names["f.nii.gz"], blobs(grid), grid)
    io.write_image(names["m.nii.gz"], blobs(grid, 1), grid)
    for k, shift in (("a.mat", 0.5), ("b.mat", -0.2)):
        io.write_affine(names[k], np.array([[1, 0, shift], [0, 1, 0], [0, 0, 1.0]]))
    initial = [names["a.mat"], f"[{names['b.mat']},1]"]
    words = ["register", names["f.nii.gz"], names["m.nii.gz"], "-o", f"{tmp_path}/o/", *QUICK, "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--initial", initial[0], "--initial", initial[1]])
    assert not ended.value.code
    run = json.loads((tmp_path / "o/run.json").read_text())
    assert [run["inputs"][k]["path"] for k in ("initial", "initial_2")] == [names["a.mat"], names["b.mat"]]
    assert f"--initial {initial[0]} --initial '{initial[1]}'" in run["command"]
    affine = io.read_transform(str(tmp_path / "o/0GenericAffine.mat")).matrix.numpy()
    assert np.allclose(affine[:, 2], [0.7, 0, 1], atol=1e-9)

    def job(*given):
        return Job(names["f.nii.gz"], names["m.nii.gz"], f"{tmp_path}/o/", QUICK, {"initial": given})

    found = {given: job(*given).find_finished_run(job(*given).settings()) for given in ((*initial,), (*initial[::-1],), (initial[0],), ())}
    assert [bool(x) for x in found.values()] == [True, False, False, False]
    moved = tmp_path / "elsewhere.mat"
    (tmp_path / "b.mat").rename(moved)
    there = job(initial[0], f"[{moved},1]")
    assert there.find_finished_run(there.settings())
    io.write_affine(moved, np.eye(3))
    assert not there.find_finished_run(there.settings())


@pytest.mark.fault(103)
@pytest.mark.parametrize("wrong", [3, [None], [Affine(torch.eye(4))], [["a.mat"]], np.eye(4)])
def test_initial_that_is_no_file(wrong, tmp_path):
    io.write_image(tmp_path / "f.nii.gz", blobs(GRIDS["2d"]), GRIDS["2d"])
    with pytest.raises(InputError, match="initial"):
        read_inputs(tmp_path / "f.nii.gz", tmp_path / "f.nii.gz", initial=wrong)


@pytest.mark.fault(58)
def test_a_chain_is_judged_as_a_whole(case):
    grid, names = case
    whole = commands.evaluate([names["c.h5"]])
    alone = commands.evaluate([names["warp.nii.gz"]])
    assert alone and {k: pytest.approx(v, abs=1e-9) for k, v in alone.items()} == whole  # the affine does not count
    assert commands.evaluate([names["shift.txt"], names["warp.nii.gz"]]) == pytest.approx(alone)
    twice = commands.evaluate([names["warp.nii.gz"], names["turn.mat"], names["warp.nii.gz"]])
    maps = io.read_transforms([names["warp.nii.gz"], names["turn.mat"], names["warp.nii.gz"]])
    u = displacement(framed(maps, grid), grid, torch.zeros(1, dtype=torch.float64))
    assert twice == pytest.approx(metrics.regularity(u, grid)) and twice["sd_log_jacobian"] > 1.2 * alone["sd_log_jacobian"]
    assert commands.evaluate([names["turn.mat"], names["shift.txt"]]) == {}


def folding(grid, kind: str, cells: int = 1) -> torch.Tensor:
    """Displacements that fold: everywhere, in a checkerboard, onto a plane, or at one voxel."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    u = torch.zeros_like(x)
    if kind == "checkerboard":
        parity = sum(torch.arange(n).view(*(-1 if i == k else 1 for i in range(grid.ndim))) for k, n in enumerate(grid.shape)) % 2
        u += 0.8 * grid.spacing[0] * (2 * parity - 1)
    elif kind == "mirror":
        u[:, 0] = -2 * x[:, 0] + 3 * x[:, 0].square()
    elif kind == "flat":
        u[:, 0] = -x[:, 0]
    else:
        u[(0, 0, *(n // 2 for n in grid.shape))] = 1.7 * grid.spacing[0]
    return u


@pytest.mark.fault(58)
@pytest.mark.parametrize("kind", ["checkerboard", "mirror", "flat", "one voxel"])
def test_a_fold_has_no_inverse(case, tmp_path, kind):
    grid, names = case
    io.write_warp(tmp_path / "w.nii.gz", folding(grid, kind), grid)
    warp, out = str(tmp_path / "w.nii.gz"), str(tmp_path / "o.nii.gz")
    options = {"source_form": None, "form": None, "fixed": None, "moving": None, "overwrite": False}
    with pytest.raises(DivergenceError, match=r"w\.nii\.gz: .*(cells fold|flattens)"):
        commands.invert_transform(warp, out, **options)
    plain = {"labels": False, "invert": True, "overwrite": False}
    with pytest.raises(DivergenceError, match=r"cells fold|flattens"):
        commands.apply(names["m.nii.gz"], [warp, names["turn.mat"]], names["f.nii.gz"], out, **plain)
    assert not (tmp_path / "o.nii.gz").exists()
    found = commands.invert_transform(names["c.h5"], out, **options)
    assert found["residual_voxels"] < 1e-2


def test_chains_of_affine_maps_are_inverted_exactly(case, tmp_path):
    _, names = case
    commands.compose([names["turn.mat"], names["shift.txt"]], str(tmp_path / "ab.h5"), form=None, fixed=None, moving=None, overwrite=False)
    there = io.read_transform(str(tmp_path / "ab.h5"))
    options = {"source_form": None, "form": None, "fixed": None, "moving": None, "overwrite": False}
    commands.invert_transform(str(tmp_path / "ab.h5"), str(tmp_path / "ba.mat"), **options)
    x = torch.rand(1, there.ndim, 7, dtype=torch.float64) * 30
    assert torch.allclose(io.read_transform(str(tmp_path / "ba.mat"))(there(x)), x, atol=1e-9)


@pytest.mark.fault(102)
@pytest.mark.parametrize("form", [None, "itk", "fsl", "afni", "learn2reg", "ras", "spm", "elastix", "nonsense"])
@pytest.mark.parametrize("name", ["o", "o.mha", "o.png", "o.nii.gz.txt.bak", "o.lta", "o.xfm", "o.csv"])
def test_endings_are_refused_before_anything_is_read(tmp_path, name, form):
    options = {"form": form, "fixed": "missing", "moving": "missing", "overwrite": False}
    for run in (
        lambda: commands.convert("missing", str(tmp_path / name), source_form=None, **options),
        lambda: commands.compose(["missing"], str(tmp_path / name), **options),
        lambda: commands.invert_transform("missing", str(tmp_path / name), source_form=None, **options),
    ):
        with pytest.raises(ConfigError, match=r"o|--to"):
            run()
    assert not list(tmp_path.iterdir())
