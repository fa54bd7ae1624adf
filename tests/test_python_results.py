"""What a registration gives in Python: other images, labels and points through its map, arrays, matrices, texts and pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import rdmm
from rdmm import ConfigError, Grid, InputError, io
from rdmm.registration.record import find_outputs, read_summary
from rdmm.registration.stored import read_run
from rdmm.runtime.progress import report_progress, shown_progress
from tests.conftest import oblique

QUICK = {"optimizer": {"scales": [1.0], "iterations": [4]}, "verbose": False}


def centered(grid: Grid) -> Grid:
    """The same voxels around the world's origin."""
    affine = np.array(grid.affine)
    affine[:-1, -1] -= grid.corners().mean(0)
    return Grid(grid.shape, affine)


GRIDS = {
    "2d": (centered(oblique((20, 18), (1.5, 1.0), flip=True)), centered(oblique((19, 21), (1.2, 1.1), angle=0.2))),
    "3d": (
        centered(oblique((11, 10, 9), (1.5, 1.3, 2.0), angle=2.0, flip=True)),
        centered(oblique((12, 11, 10), (1.2, 1.4, 1.9), angle=1.8)),
    ),
}


def blob(grid: Grid, shift: float) -> rdmm.Image:
    """A blob around the origin, moved along the first axis of the world by ``shift`` millimeters."""
    x = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in grid.shape], indexing="ij"), -1)
    world = grid.voxel_to_world(x)
    return rdmm.Image(
        torch.as_tensor(np.exp(-(((world - np.eye(grid.ndim)[0] * shift) / 4) ** 2).sum(-1)), dtype=torch.float32)[None, None], grid
    )


@pytest.fixture(scope="module", params=GRIDS)
def done(request: pytest.FixtureRequest) -> rdmm.Registration:
    fixed, moving = GRIDS[request.param]
    initial = np.eye(fixed.ndim + 1)
    initial[0, -1], initial[1, 1] = 1.0, 1.05
    return rdmm.register(blob(fixed, 0), blob(moving, 2), affine="none", initial=initial, **QUICK)


def test_the_files_say_the_same(done: rdmm.Registration, tmp_path: Path) -> None:
    """Arrays and images of a result are those of its files, on the grids of the inputs, with their axes."""
    done.save(f"{tmp_path}/", report=False)
    moving, chain = done.inputs.pair.moving, [tmp_path / "1Warp.nii.gz", tmp_path / "0GenericAffine.mat"]
    stored = [nib.load(tmp_path / f"{name}.nii.gz") for name in ("Warped", "InverseWarped")]
    for image, file, grid in zip((done.warped, done.inverse_warped), stored, done.stored, strict=True):
        assert np.allclose(image.numpy(), file.get_fdata(), atol=1e-6) and image.grid == grid and image.numpy().shape == grid.shape
        assert np.allclose(image.nibabel().affine, file.affine)
    x = done.stored[0].corners().mean(0)[None] + np.linspace(-3, 3, 5)[:, None]
    assert np.allclose(done.points(x), rdmm.points(x, chain), atol=1e-4)
    assert np.allclose(done.points(done.points(x), inverse=True), x, atol=0.1)
    again = rdmm.apply(moving, chain, done.stored[0])
    assert np.allclose(done.apply(moving).numpy(), again.numpy(), atol=1e-5)
    assert np.allclose(done.warped.numpy(), again.numpy(), atol=1e-5)
    assert np.allclose(rdmm.apply(moving, done).numpy(), again.numpy(), atol=1e-5)


def test_the_whole_map_as_arrays(done: rdmm.Registration) -> None:
    grid = done.stored[0]
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in grid.shape], indexing="ij"), -1).reshape(-1, grid.ndim)
    x = grid.voxel_to_world(index)
    assert np.allclose(x + done.displacement_mm.reshape(-1, grid.ndim), done.points(x), atol=1e-4)
    assert np.allclose(done.affine[:-1, -1], np.eye(grid.ndim)[0]) and np.isclose(done.affine[1, 1], 1.05)
    det, alone = done.jacobian(with_affine=True).numpy(), done.jacobian().numpy()
    assert np.allclose(det, 1.05 * alone, rtol=1e-5) and det.shape == grid.shape
    assert np.allclose(np.exp(done.jacobian(log=True).numpy()), alone, rtol=1e-4)
    h = 1e-3
    steps = [(done.points(x + h * e) - done.points(x - h * e)) / (2 * h) for e in np.eye(grid.ndim)]
    middle = np.ravel_multi_index([n // 2 for n in grid.shape], grid.shape)
    assert np.isclose(np.linalg.det(np.stack(steps, -1)[middle]), det.ravel()[middle], atol=0.15)


def test_labels_are_warped_exactly(done: rdmm.Registration) -> None:
    """An array in the voxels of the moving image; an array in those of the fixed one goes back."""
    fixed, moving = done.stored
    numbers = np.where(np.indices(moving.shape)[0] > 8, 2**40 + 1, 7)
    warped = done.apply(numbers, labels=True).numpy()
    assert warped.dtype == np.int64 and set(np.unique(warped)) <= {0, 7, 2**40 + 1} and warped.shape == fixed.shape
    back = done.apply(np.ones(fixed.shape), inverse=True)
    assert back.numpy().shape == moving.shape and back.grid == moving
    with pytest.raises(InputError, match="image: an array of shape"):
        done.apply(np.ones([n + 1 for n in moving.shape]))
    with pytest.raises(InputError, match="does not say where its voxels are"):
        rdmm.apply(numbers, np.eye(fixed.ndim + 1), fixed)
    with pytest.raises(InputError, match="reference is missing"):
        rdmm.apply(done.pair.moving, np.eye(fixed.ndim + 1))


def test_points_are_checked(done: rdmm.Registration) -> None:
    d = done.grid.ndim
    for wrong in (np.zeros((3, 5 - d)), np.zeros(d), np.full((2, d), np.nan), [["a"] * d], None):
        with pytest.raises(InputError, match="points"):
            done.points(wrong)


def test_transforms_compose_in_memory(done: rdmm.Registration, tmp_path: Path) -> None:
    """A file, a matrix, a transform and a registration in one list, in the order of a point."""
    d = done.grid.ndim
    shift = np.eye(d + 1)
    shift[0, -1] = 0.5
    io.write_affine(tmp_path / "shift.mat", shift)
    x = done.stored[0].corners().mean(0)[None]
    expected = done.points(x + 0.5 * np.eye(d)[0]) + 0.5 * np.eye(d)[0]
    for step in (done, done.transform):
        whole = rdmm.compose([shift, step, tmp_path / "shift.mat"])
        assert np.allclose(rdmm.points(x, whole), expected, atol=1e-4)
    assert np.allclose(rdmm.invert(shift).matrix, np.linalg.inv(shift))
    assert np.allclose(rdmm.convert(tmp_path / "shift.mat").matrix, shift)
    assert np.allclose(rdmm.evaluate(done)["sd_log_jacobian"], done.metrics["sd_log_jacobian"], atol=1e-4)
    with pytest.raises(InputError, match="a dict"):
        rdmm.compose([{}])


def test_a_registration_goes_on_from_another(done: rdmm.Registration) -> None:
    more = rdmm.register(done.pair.fixed, done.pair.moving, initial=done, affine="none", optimizer="none")
    x = done.stored[0].corners().mean(0)[None]
    assert np.allclose(more.points(x), done.points(x), atol=1e-3)


def test_texts_are_short(done: rdmm.Registration) -> None:
    things = [done, done.result, done.pair, done.grid, done.warped, done.transform, done.inverse, done.result.ic]
    for thing in things:
        assert "tensor" not in repr(thing) and len(repr(thing)) < 500 and "\n" not in repr(thing), repr(thing)
    assert f"verdict {done.verdict.grade}" in repr(done)
    page = done._repr_html_()
    assert done.verdict.grade in page and "data:image/jpeg" in page and "folds_percent" in page and "<script" not in page


def test_texts_of_points_are_short() -> None:
    points = rdmm.Measure(torch.rand(1, 2, 500), cells=torch.zeros(499, 2, dtype=torch.long))
    pair = rdmm.Pair(points, points)
    assert "points (1, 2, 500), cells (499, 2)" in repr(points) and len(repr(pair)) < 200
    assert repr(rdmm.InitialConditions(torch.rand(1, 2, 30, 30))) == "InitialConditions(momentum (1, 2, 30, 30))"


def test_plot(done: rdmm.Registration) -> None:
    """A figure of pyplot. The user's backend stays."""
    import matplotlib

    backend = matplotlib.get_backend()
    figure = done.plot()
    assert len(figure.axes) == {2: 5, 3: 15}[done.grid.ndim] and matplotlib.get_backend() == backend
    sys.modules["matplotlib.pyplot"].close(figure)


def test_progress(capsys: pytest.CaptureFixture) -> None:
    """A script is silent; verbose=True writes lines where there is no terminal; a session shows a bar there."""
    import logging

    for verbose, shown in ((None, False), (False, False), (True, True)):
        with shown_progress(verbose):
            logging.getLogger("rdmm.test").info("level 0")
            report_progress(0, 1, 2, 0.5)
        assert ("level 0" in capsys.readouterr().err) == shown
    with pytest.raises(ConfigError, match="verbose"):
        rdmm.register("a.nii", "b.nii", verbose="yes")


def test_a_start_in_memory_is_recorded(done: rdmm.Registration, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The report that is made again does not shoot the geodesic as if it began at the identity."""
    files = [image.save(tmp_path / f"{k}.nii.gz") for k, image in enumerate((blob(done.stored[0], 0), blob(done.stored[1], 2)))]
    start = np.eye(done.grid.ndim + 1)
    start[0, -1] = 1.0
    run = rdmm.register(*files, affine="none", initial=start, **QUICK)
    run.save(f"{tmp_path}/out/", report=False)
    summary = read_summary(tmp_path / "out" / "run.json")
    again = read_run(find_outputs(f"{tmp_path}/out/"), summary)
    assert summary["in_memory"] == ["initial"] and again.result.ic is None and "initial of this run" in caplog.text
    assert np.allclose(again.warped.numpy(), run.warped.numpy(), atol=1e-4)
