"""Smoothness inside the subject: where the subject is, and that SDlogJ there is that of the formula, whatever surrounds it."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import GRIDS, center, oblique, swirl

import rdmm
from rdmm import Grid, Image, InputError, metrics
from rdmm.cli.program import main
from rdmm.data.inputs import read_inputs
from rdmm.registration.images import Registration
from rdmm.spatial.transform import Affine, Dense, Identity, Placed, composed
from rdmm.stages.base import Result

PLANE = Grid((24, 20), np.diag([1.5, 1, 1]))


def ball(grid: Grid, radius: float = 0.25) -> torch.Tensor:
    """1 within ``radius`` of the center, (1, 1, *s)."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    return ((x - center(grid)).norm(dim=1, keepdim=True) < radius).float()


def spread_by_numpy(u: torch.Tensor, grid: Grid, inside: np.ndarray) -> float:
    """The standard deviation of log det D phi over ``inside``, by numpy's central differences."""
    columns = np.stack([np.stack(np.gradient(part, *grid.spacing), -1) for part in u[0].numpy()], -2)
    det = np.linalg.det(columns + np.eye(grid.ndim))
    return float(np.log(np.maximum(det, 1e-3))[inside].std(ddof=1))


def test_a_still_surrounding_hides_the_roughness_of_the_subject(grid):
    """The same map in a larger field of view: SDlogJ of the whole falls, that of the subject stays, and numpy finds it as well."""
    u, inside = swirl(grid, 0.1), ball(grid, 0.15)
    found = metrics.regularity(u, grid, metrics.Subject(inside, "mask"))
    assert found["subject"] == "mask" and found["sd_log_jacobian_subject"] > 1.5 * found["sd_log_jacobian"]
    assert found["sd_log_jacobian_subject"] == pytest.approx(spread_by_numpy(u, grid, inside[0, 0].numpy() > 0), rel=1e-9)
    assert found["sd_log_jacobian"] == pytest.approx(spread_by_numpy(u, grid, np.ones(grid.shape, bool)), rel=0.01)
    assert list(found) == [
        "folds_percent", "folds_sum", "folded_cells_percent", "ndv_percent", "sd_log_jacobian", "sd_log_jacobian_subject", "subject",
    ]  # fmt: skip


def test_the_inverse_is_measured_inside_the_subject_too(grid):
    """An inverse that is wrong by one length in a ball alone: the whole volume hides it, the subject shows it."""
    inside = ball(grid)
    shift = torch.zeros(1, grid.ndim, *grid.shape, dtype=torch.float64)
    shift[:, :1] = 0.01 * inside
    found = metrics.inverse_errors(Dense(shift, grid), Identity(), grid, metrics.Subject(inside, "mask"))
    assert found["inverse_consistency_subject_mm"] == pytest.approx(0.01 * grid.length)
    assert found["inverse_consistency_mm"] == pytest.approx(0.01 * grid.length * float(inside.mean()))
    assert list(metrics.inverse_errors(Dense(shift, grid), Identity(), grid)) == ["inverse_consistency_mm"]


@pytest.mark.fault(127)
def test_no_subject_no_number(grid):
    """Nothing is measured where nobody said what the subject is; a subject of no voxel has no spread."""
    u = swirl(grid, 0.1)
    assert "subject" not in metrics.regularity(u, grid)
    empty = metrics.regularity(u, grid, metrics.Subject(torch.zeros(1, 1, *grid.shape), "labels"))
    assert np.isnan(empty["sd_log_jacobian_subject"])


@pytest.mark.parametrize("ground", ["dark", "bright", "air"])
@pytest.mark.parametrize("name", GRIDS)
def test_the_foreground_is_what_differs_from_the_ground(name, ground):
    """Dark ground (MR), bright ground (histology), air and a voxel of metal (CT): Otsu's threshold finds the same ball."""
    grid, inside = GRIDS[name], ball(GRIDS[name])
    noise = torch.rand(inside.shape, generator=torch.Generator().manual_seed(1))
    data = {"dark": 3 * inside + noise, "bright": 255 - 90 * inside - 20 * noise, "air": -1000 + 1040 * inside + 90 * noise}[ground]
    if ground == "air":
        data.view(-1)[0] = 30000.0  # metal
    found = metrics.find_subject(Image(data, grid))
    assert found.source == "foreground" and float((found.inside != inside).double().mean()) < 2e-3


def test_otsu_of_two_classes():
    """The threshold that separates two classes best, by trying every one."""
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(2, 0.6, 700), generator.normal(6, 1.1, 300)])
    threshold = metrics.otsu_threshold(torch.as_tensor(values))

    def within(t: float) -> float:
        parts = values[values <= t], values[values > t]
        return sum(part.size * part.var() for part in parts)

    assert within(threshold) <= 1.002 * min(within(t) for t in np.sort(values)[1:-1])
    assert metrics.otsu_threshold(torch.full((9,), 4.0)) == 4


def test_several_channels_and_an_exclusion(grid):
    """Channels are averaged; what is masked out is no part of any subject."""
    inside = ball(grid)
    two = torch.cat([inside, 0.5 * inside], 1)
    keep = 1 - ball(grid, 0.1)
    image = Image(two, grid, keep)
    assert torch.equal(metrics.find_subject(Image(two, grid)).inside, inside)
    assert torch.equal(metrics.find_subject(image).inside, inside * keep)
    assert torch.equal(metrics.find_subject(image, Image(4 * inside, grid)).inside, inside * keep)
    by_mask = metrics.find_subject(image, Image(inside, grid), by_mask=True)
    assert by_mask.source == "mask" and torch.equal(by_mask.inside, keep)


def finished(**given) -> Registration:
    """A finished registration of a ball, without a search, and with the inputs ``given``."""
    image = Image(ball(PLANE), PLANE)
    u = swirl(PLANE, 0.1).float()
    result = Result(Dense(u, PLANE), Dense(-u, PLANE), {}, seconds={"total": 0.0})
    return Registration(read_inputs(image, image, **given), result, {})


def test_mask_before_labels_before_foreground():
    """The source is said, and each names another subject."""
    small, mask = (Image(ball(PLANE, r), PLANE) for r in (0.15, 0.4))
    labels = Image(small.data.long() * 7, PLANE)
    kinds = {
        "foreground": (ball(PLANE), {}),
        "labels": (small.data, {"fixed_labels": labels}),
        "mask": (mask.data, {"fixed_labels": labels, "moving_labels": labels, "fixed_mask": mask}),
    }
    for source, (inside, given) in kinds.items():
        done = finished(**given)
        assert done.metrics["subject"] == source
        spread = spread_by_numpy(done.deformation.double(), PLANE, inside[0, 0].numpy() > 0)
        assert done.metrics["sd_log_jacobian_subject"] == pytest.approx(spread, rel=1e-5)


def test_a_lesion_that_is_left_out_is_no_mask_of_the_subject():
    done = finished(fixed_exclude=Image(ball(PLANE, 0.1), PLANE))
    assert done.metrics["subject"] == "foreground"
    assert torch.equal(done.subject.inside, ball(PLANE) - ball(PLANE, 0.1))


def test_labels_on_another_grid_lie_where_their_world_coordinates_say():
    fine = PLANE.resized([2 * n for n in PLANE.shape])
    done = finished(fixed_labels=Image(ball(fine).long(), fine))
    assert float((done.subject.inside != ball(PLANE)).double().mean()) < 0.03 and done.metrics["subject"] == "labels"


@pytest.mark.parametrize("as_images", ["true", "false"])
def test_label_maps_that_are_registered_say_themselves_where_the_subject_is(as_images):
    label_map = (ball(PLANE, 0.3) + 2 * ball(PLANE, 0.15))[0, 0].numpy().astype(np.uint8)
    moved = np.roll(label_map, 1, 0)
    done = rdmm.register(label_map, moved, spacing=(1.5, 1), transform="translation", overrides=[f"labels_as_images={as_images}"])
    assert done.metrics["subject"] == "labels" and torch.equal(done.subject.inside, ball(PLANE, 0.3))


def test_files_and_tables_say_it(tmp_path, capsys):
    """run.json, the page, and the row of a batch's table."""
    from rdmm.registration.record import table_row

    done = finished()
    done.save(f"{tmp_path}/")
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["metrics"]["subject"] == "foreground"
    assert table_row(run)["sd_log_jacobian_subject"] == pytest.approx(done.metrics["sd_log_jacobian_subject"])
    assert table_row(run)["subject"] == "foreground"
    page = (tmp_path / "report.html").read_text()
    assert "sd_log_jacobian_subject" in page and f"SDlogJ {done.metrics['sd_log_jacobian_subject']:.3g} in the subject (foreground)" in page


def test_evaluate_measures_inside_what_it_is_given():
    """Labels, a mask or the image itself; before a warp that follows an affine map, the subject moves along."""
    grid = oblique((22, 18), (1.0, 1.3))
    u, inside = swirl(grid, 0.1), ball(grid, 0.2)
    warp, labels = Placed(Dense(u, grid), grid), Image(inside.long(), grid)
    wanted = spread_by_numpy(u, grid, inside[0, 0].numpy() > 0)
    image = Image(ball(grid, 0.3) + inside, grid)
    for source, given in {
        "labels": {"fixed_labels": labels, "moving_labels": labels, "fixed": image},
        "mask": {"fixed_mask": labels, "fixed_labels": labels, "moving_labels": labels},
        "foreground": {"fixed": Image(inside, grid)},
    }.items():
        found = rdmm.evaluate(warp, **given)
        assert (found["subject"], found["sd_log_jacobian_subject"]) == (source, pytest.approx(wanted, rel=1e-6)), source
    assert "subject" not in rdmm.evaluate(warp)
    shift = torch.eye(3, dtype=torch.float64)
    shift[:2, 2] = torch.tensor([50.0, -30.0])
    elsewhere = Grid(grid.shape, np.linalg.inv(shift.numpy()) @ grid.affine)
    found = rdmm.evaluate(composed(Affine(shift), warp), fixed_mask=Image(inside, elsewhere))
    assert found["sd_log_jacobian_subject"] == pytest.approx(wanted, rel=1e-6)


def test_a_run_is_evaluated_with_its_own_inverse(tmp_path):
    """The error of the inverse that the run has written stands beside its roughness: of its files, its inverse, the result in memory."""
    done = finished()
    done.save(f"{tmp_path}/", report=False)
    wanted = done.metrics["inverse_consistency_mm"]
    assert wanted > 0.01  # -u is a poor inverse of u
    for given in (f"{tmp_path}/", done):
        found = rdmm.evaluate(given, fixed_mask=Image(ball(PLANE), PLANE))
        assert found["inverse_consistency_mm"] == pytest.approx(wanted, rel=1e-3)
        assert found["inverse_consistency_subject_mm"] == pytest.approx(done.metrics["inverse_consistency_subject_mm"], rel=1e-3)
    for given in (tmp_path / "1Warp.nii.gz", f"[{tmp_path}/,1]", replace(done, has_inverse=False)):
        assert "inverse_consistency_mm" not in rdmm.evaluate(given)
    (tmp_path / "1InverseWarp.nii.gz").unlink()
    assert "inverse_consistency_mm" not in rdmm.evaluate(f"{tmp_path}/")  # the inverse of a computed inverse says nothing


@pytest.mark.fault(127)
def test_a_subject_outside_the_warp_is_said(caplog):
    warp = Placed(Dense(swirl(PLANE, 0.1), PLANE), PLANE)
    far = Grid(PLANE.shape, PLANE.affine + np.array([[0, 0, 500], [0, 0, 0], [0, 0, 0]]))
    caplog.set_level(logging.WARNING)
    assert np.isnan(rdmm.evaluate(warp, fixed_mask=Image(ball(PLANE), far))["sd_log_jacobian_subject"])
    assert "the mask of the fixed image lies outside the warp" in caplog.text
    with pytest.raises(InputError, match=r"fixed.*3D"):
        rdmm.evaluate(warp, fixed=Image(torch.rand(1, 1, 5, 5, 5), Grid.unit((5, 5, 5))))


def test_the_command_line_takes_the_image_or_a_mask(tmp_path):
    finished().save(f"{tmp_path}/", report=False)
    for name, radius in (("fixed", 0.25), ("mask", 0.15)):
        rdmm.Image(ball(PLANE, radius), PLANE).save(tmp_path / f"{name}.nii.gz")
    typed = ["evaluate", "-t", f"{tmp_path}/", "--fixed", f"{tmp_path}/fixed.nii.gz", "--json"]
    by_image, by_mask = (
        json.loads(CliRunner().invoke(main, words, catch_exceptions=False).stdout)
        for words in (typed, [*typed, "--fixed-mask", f"{tmp_path}/mask.nii.gz"])
    )
    assert (by_image["subject"], by_mask["subject"]) == ("foreground", "mask")
    assert by_image["sd_log_jacobian_subject"] != by_mask["sd_log_jacobian_subject"]


def test_a_still_map_has_no_spread_anywhere(caplog):
    caplog.set_level(logging.WARNING)
    found = rdmm.evaluate(Placed(Dense(torch.zeros(1, 2, *PLANE.shape), PLANE), PLANE), fixed=Image(ball(PLANE), PLANE))
    assert found["sd_log_jacobian_subject"] == 0 and not caplog.records
    assert "subject" not in rdmm.evaluate(Affine(torch.eye(3, dtype=torch.float64)), fixed=Image(ball(PLANE), PLANE))
