"""The verdict: each doubt is raised by what it is for, and by nothing in an ordinary run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import rdmm
from rdmm import Grid, Image, Measure, io, metrics
from rdmm.cli.program import main
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.registration.background import find_background
from rdmm.registration.images import Registration
from rdmm.registration.verdict import Doubt, Verdict
from rdmm.spatial.transform import Affine, Dense, Identity
from rdmm.stages.base import Result

FAST = {"optimizer__iterations": [4, 4, 4]}


@pytest.fixture(scope="module")
def scene():
    return shapes_pair(3, (64, 60))[0]


@pytest.fixture(scope="module")
def done(scene) -> Registration:
    return rdmm.register(fixed=scene.fixed, moving=scene.moving, **FAST)


def with_map(done: Registration, u: torch.Tensor, **changes) -> Registration:
    """The same registration with another deformation, fixed -> moving, in domain units."""
    dense = Dense(u, done.grid)
    return replace(done, result=replace(done.result, transform=dense, inverse=Identity(), ic=None, **changes))


def test_an_ordinary_run_is_good(done):
    assert done.verdict == Verdict() and str(done.verdict) == "good"
    before, after = done.result.similarities
    assert after < 0.9 * before


def test_the_worst_doubt_decides():
    doubts = [Doubt("check", "a"), Doubt("failed", "b"), Doubt("check", "c")]
    assert Verdict.of(doubts) == Verdict("failed", ["b", "a", "c"]) and str(Verdict.of(doubts)) == "failed: b; a; c"
    assert Verdict.of(doubts[:1]).grade == "check" and Verdict.of([]).grade == "good"


@pytest.mark.fault(95)
@pytest.mark.parametrize(
    ("settings", "grade"),
    [
        ({"similarity_weight": 1e30, "affine": "none"}, "failed"),
        ({"similarity_weight": 1e-30, "affine": "none"}, "failed"),
        ({"smoother__sigmas": [10.0, 20.0], "smoother__weights": [0.5, 0.5], "affine": "none"}, "failed"),
    ],
)
def test_no_progress(scene, settings, grade):
    verdict = rdmm.register(fixed=scene.fixed, moving=scene.moving, **settings, **FAST).verdict
    assert verdict.grade == grade and "no progress" in str(verdict)


@pytest.mark.fault(95)
def test_identical_images_need_no_progress(scene):
    assert rdmm.register(fixed=scene.fixed, moving=scene.fixed, **FAST).verdict.grade == "good"


@pytest.mark.fault(95)
def test_folds(done):
    """A checkerboard folds most cells, one steep wave a few."""
    x = done.grid.identity(done.deformation)
    number = torch.stack(torch.meshgrid(*map(torch.arange, done.grid.shape), indexing="ij")).sum(0)
    verdict = with_map(done, (0.6 * done.grid.spacing[0] * (-1.0) ** number).expand_as(x).clone()).verdict
    assert verdict.grade == "failed" and "of the cells fold" in str(verdict)
    center = ((x - 0.5 * x.amax()) ** 2).sum(1, keepdim=True)
    bump = with_map(done, 0.08 * torch.exp(-center / (2 * 0.03**2)) * torch.ones_like(x))
    assert 0.1 < bump.metrics["folded_cells_percent"] < 5
    assert bump.verdict.grade == "check" and "of the cells fold" in str(bump.verdict)


@pytest.mark.fault(95)
def test_a_map_out_of_the_moving_image(done):
    away = with_map(done, torch.full_like(done.deformation, 3.0))
    assert away.verdict.grade == "failed" and "leads out of the moving image" in str(away.verdict)
    half = with_map(done, torch.cat([torch.full_like(done.deformation[:, :1], 0.7), torch.zeros_like(done.deformation[:, :1])], 1))
    assert any("leads out of the moving image" in reason for reason in half.verdict.reasons)


@pytest.mark.fault(95)
def test_images_that_agree_less_than_before(done):
    worse = with_map(done, done.deformation, similarities=(0.2, 0.4))
    assert worse.verdict.grade == "failed" and "agree less than before" in str(worse.verdict)
    assert with_map(done, done.deformation, similarities=(0.2, 0.2)).verdict.grade == "good"


@pytest.mark.fault(95)
def test_doubts_of_the_affine_stage_and_of_interruption(done):
    remarked = replace(done, result=replace(done.result, remarks=["the moving image was rotated by 180 degrees"]))
    assert remarked.verdict.grade == "check" and "180 degrees" in str(remarked.verdict)
    assert replace(done, status="interrupted").verdict.grade == "check"


@pytest.mark.fault(95)
def test_lost_labels_and_worse_overlap(done):
    moving = Image(torch.zeros_like(done.pair.moving.data), done.pair.moving.grid)
    moving.data[..., 20:40, 20:40] = 7
    moving.data[..., 10:14, 10:14] = 9
    fixed = moving.moved_by(done.result.transform, mode="nearest")
    labelled = replace(done, inputs=replace(done.inputs, fixed_labels=fixed, moving_labels=moving))
    assert labelled.verdict.grade == "good"
    away = with_map(labelled, torch.full_like(done.deformation, 0.25))
    assert away.verdict.grade == "failed" and "Dice of the labels became worse" in str(away.verdict)
    assert any("1 of 2 labels are lost" in reason and "9" in reason for reason in away.verdict.reasons)


@pytest.mark.fault(95)
def test_energy_drift(done):
    drifting = replace(done)
    drifting.__dict__["metrics"] = {**done.metrics, "energy_drift": 0.05}
    assert drifting.verdict == Verdict("check", ["the energy drifts by 5 % along the geodesic: the integration is inexact"])


@pytest.mark.parametrize("shape", [(60, 50), (24, 22, 20)])
@pytest.mark.parametrize("level", [0.0, 100.0])
def test_background(shape, level):
    """A box on a plain border, dark or bright: what is seen from the border, three voxels off the box. A cavity inside is none."""
    data = torch.full((1, 1, *shape), level)
    inside = (0, 0, *(slice(n // 3, n - n // 3) for n in shape))
    data[inside] = 50.0
    data[(0, 0, *(slice(n // 2 - 1, n // 2 + 1) for n in shape))] = level
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    found = find_background(Image(data + noise, Grid.unit(shape)))
    assert found is not None and float(found[inside].sum()) == 0 and float(found[(0, 0, *(0,) * len(shape))]) == 1
    share = 1 - 3.0 ** -len(shape)
    assert 0.5 * share < float(found.mean()) < share
    assert find_background(Image(noise * 30, Grid.unit(shape))) is None


@pytest.mark.fault(95)
def test_a_deformation_that_chases_noise(scene):
    """Noise in both images: LNCC aligns the noise of the background."""
    generator = torch.Generator().manual_seed(1)
    fixed, moving = (Image(x.data + 0.1 * torch.randn(x.data.shape, generator=generator), x.grid) for x in (scene.fixed, scene.moving))
    noisy = rdmm.register(fixed=fixed, moving=moving, similarity_weight=1.0, similarity="lncc")
    told = [reason for reason in noisy.verdict.reasons if "follows noise" in reason]
    assert told and told[0].endswith('One subject? Use transform="rigid"'), noisy.verdict


@pytest.mark.fault(95)
def test_code_record_page_and_last_line(scene, tmp_path, capsys):
    """failed is code 5, and every surface shows the same words."""
    for name in ("fixed", "moving"):
        image = getattr(scene, name)
        io.write_image(tmp_path / f"{name}.nii.gz", image.data, image.grid)
    command = ["register", f"{tmp_path}/fixed.nii.gz", f"{tmp_path}/moving.nii.gz", "--quiet"]
    for out, settings, code, grade in (("a", [], 0, "good"), ("b", ["similarity_weight=1e30", "affine=none"], 5, "failed")):
        with pytest.raises(SystemExit) as end:
            main([*command, "-o", f"{tmp_path}/{out}/", "optimizer.iterations=[2,2,2]", *settings])
        last = capsys.readouterr().out.strip().splitlines()[-1]
        run = json.loads((tmp_path / out / "run.json").read_text())
        assert end.value.code == code and run["verdict"] == grade and last.startswith(f"verdict: {grade}")
        assert last.partition(f"{grade}: ")[2] == "; ".join(run["reasons"])
        page = (tmp_path / out / "report.html").read_text()
        assert f">{grade}</span>" in page and all(reason in page for reason in run["reasons"])


@pytest.mark.fault(95)
def test_batch_table(scene, tmp_path, capsys):
    """A failed pair is in the table with its reasons and its metrics, in failures.json, and makes code 4."""
    for name in ("fixed", "moving"):
        io.write_image(tmp_path / f"{name}.nii.gz", getattr(scene, name).data, getattr(scene, name).grid)
    (tmp_path / "pairs.csv").write_text("id,fixed,moving\na,fixed.nii.gz,moving.nii.gz\nb,fixed.nii.gz,fixed.nii.gz\n")
    settings = ["similarity_weight=1e30", "affine=none", "optimizer.iterations=[2,2,2]"]
    with pytest.raises(SystemExit) as end:
        main(["batch", f"{tmp_path}/pairs.csv", "-o", f"{tmp_path}/out", "--quiet", *settings])
    assert end.value.code == 4
    table = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert "verdict" in table[0] and table[1].startswith("a,failed,failed,5") and "no progress" in table[1]
    assert table[2].startswith("b,done,good,0")
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert [f["id"] for f in failures] == ["a"] and "no progress" in failures[0]["message"]
    assert "no progress" in (tmp_path / "out" / "index.html").read_text()


def test_an_affine_result_has_no_deformation_to_judge(done):
    result = Result(Affine(torch.eye(3)), Affine(torch.eye(3)), {})
    assert Registration(done.inputs, result, {}).verdict.grade == "good"


@pytest.mark.fault(95)
@pytest.mark.parametrize("shape", [(64, 60), (30, 28, 26)])
def test_unrelated_images(shape):
    """Noise registered to an anatomy, or to noise, is no result; another contrast is."""
    pair = shapes_pair(3, shape)[0]
    generator = torch.Generator().manual_seed(0)
    noise = [Image(torch.rand(pair.fixed.data.shape, generator=generator), pair.fixed.grid) for _ in range(2)]
    for fixed, moving in ((pair.fixed, noise[0]), (noise[0], noise[1])):
        verdict = rdmm.register(fixed=fixed, moving=moving, affine="none", **FAST).verdict
        assert verdict.grade == "failed" and "hardly agree" in str(verdict)
    contrast = Image((pair.moving.data - 0.4).abs(), pair.moving.grid)
    assert "hardly agree" not in str(rdmm.register(fixed=pair.fixed, moving=contrast, **FAST).verdict)


def test_correlation_ratio():
    """1 for any function of the other image, about 0 for unrelated ones; only voxels with weight count."""
    a = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    b, weight = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(1)), torch.ones_like(a)
    assert metrics.correlation_ratio((a - 0.5) ** 2, a, weight) > 0.97
    assert abs(metrics.correlation_ratio(a, b, weight)) < 0.05
    weight[..., 20:, :] = 0
    mixed = torch.where(weight > 0, a, b)
    assert metrics.correlation_ratio(a, mixed, weight) > 0.97 and metrics.correlation_ratio(a, mixed, 1 - weight) < 0.1
    assert metrics.correlation_ratio(torch.ones_like(a), a, weight) == 0 == metrics.correlation_ratio(a, b, 0 * weight)


@pytest.mark.fault(95)
def test_sizes_that_differ(scene):
    """A header whose voxels are twice as large as they are."""
    doubled = Grid(scene.moving.grid.shape, torch.diag(torch.tensor([2.0, 2.0, 1.0])).numpy())
    verdict = rdmm.register(fixed=scene.fixed, moving=Image(scene.moving.data, doubled), **FAST).verdict
    assert verdict.grade == "check" and any("differ by a factor of" in reason for reason in verdict.reasons)


@pytest.mark.fault(95)
def test_shapes():
    """A circle onto a moved circle is good, one onto a turned L says so, and points that end farther apart have failed."""
    t = torch.linspace(0, 6.28, 80)
    circle = torch.stack([20 * t.cos(), 14 * t.sin()])[None]
    settings = {"optimizer__iterations": [10]}
    done = rdmm.register_shapes(fixed=Measure(circle), moving=Measure(circle * 1.1 + 2), **settings)
    assert done.verdict.grade == "good"
    done.__dict__["metrics"] = {**done.metrics, "distance_after_mm": 2 * done.metrics["distance_before_mm"]}
    del done.__dict__["verdict"]
    assert done.verdict.grade == "failed" and "farther apart" in str(done.verdict)
