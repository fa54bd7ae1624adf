"""Pairs with a known map: what is true is a diffeomorphism, and errors are distances from it; fronts are compared fairly."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval import tables
from eval.fronts import at_level, compare_fronts, compared_rows
from eval.study import Study
from rdmm import ConfigError
from rdmm.data import RigidCage, Sliding
from rdmm.data.synthetic.sliding import random_sliding
from rdmm.registration.entry import compose_settings, run
from rdmm.spatial import ops
from rdmm.spatial.transform import Dense


def case(shape, seed=0, **settings):
    return RigidCage(count=1, first=seed, shape=shape, **settings).cases()[f"cage{seed:02d}"]()


@pytest.mark.parametrize("shape", [(96, 96), (40, 36, 44)])
def test_the_truth_is_a_diffeomorphism_that_leaves_the_cage_alone(shape):
    for seed in range(4):
        inputs = case(shape, seed)
        grid, truth = inputs.pair.fixed.grid, inputs.truth
        outside = truth.regions["lung"] == 0
        assert float(ops.jacobian_determinant(truth.displacement.double(), grid).min()) > 0.05
        assert not bool((truth.displacement * outside).any())
        assert float(truth.displacement.norm(dim=1).max()) > 0.02  # it moves
        assert bool((truth.regions["cage"] > 0).any()) and not bool((truth.regions["cage"] * truth.regions["lung"]).any())


def test_the_true_map_makes_the_images_one_but_for_their_noise():
    inputs, noisy = case((128, 128), noise=0.0), case((128, 128), noise=0.05)
    pair = inputs.pair
    moved = pair.moving.moved_by(Dense(inputs.truth.displacement, pair.fixed.grid), pair.fixed.grid).data
    before, after = (float((x - pair.fixed.data).square().mean()) for x in (pair.moving.data, moved))
    assert after < 0.05 * before
    noise = [(n.data - i.data).flatten() for n, i in ((noisy.pair.fixed, pair.fixed), (noisy.pair.moving, pair.moving))]
    assert all(abs(float(x.std()) / 0.05 - 1) < 0.05 for x in noise)
    assert abs(float(torch.corrcoef(torch.stack(noise))[0, 1])) < 0.1


@pytest.mark.parametrize("shape", [(96, 96), (36, 40, 32)])
def test_an_organ_slides_along_a_wall(shape):
    """Each side is mapped onto itself, the wall by the identity; the jump at the border is tangential."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        scene = random_sliding(rng, len(shape))
        x = rng.uniform(0, 1, (len(shape), 4000))
        height, moved = scene.height(x), scene.true_map(x)
        assert np.allclose(scene.height(moved), height)
        assert np.array_equal(moved[:, height >= 0], x[:, height >= 0])
        inputs = Sliding(count=1, first=seed, shape=shape).cases()[f"sliding{seed:02d}"]()
        truth, grid = inputs.truth, inputs.pair.fixed.grid
        organ, wall = (truth.regions[name] > 0 for name in ("organ", "wall"))
        length = truth.displacement.norm(dim=1, keepdim=True) / max(grid.extent)
        assert float(length[organ].max()) > 0.035 and float(length[wall].max()) == 0
        assert bool(inputs.pair.regions.data[organ].all()) and not bool(inputs.pair.regions.data[wall].any())


def test_errors_are_distances_from_the_truth_by_region():
    settings = compose_settings(
        ["affine=none", "similarity=ssd", "optimizer.scales=[.5]", "optimizer.iterations=[1]", "optimizer.shooting=.2"]
    )
    done = run(case((48, 48)), settings)
    true = done.inputs.truth
    still = replace(true, displacement=torch.zeros_like(true.displacement))
    moved = float(true.displacement.norm(dim=1, keepdim=True)[true.regions["lung"] > 0].double().mean()) * done.grid.length
    measured = done.metrics
    assert measured["error_lung_before_mm"] == pytest.approx(moved, rel=1e-5)
    assert measured["error_cage_before_mm"] == 0
    assert 0 < measured["error_lung_mm"] < measured["error_lung_max_mm"]
    assert measured["error_lung_percent"] == pytest.approx(100 * measured["error_lung_mm"] / 47)
    u = done.deformation.double().norm(dim=1, keepdim=True) * done.grid.length  # from the identity, the error is the displacement
    other = replace(done, inputs=replace(done.inputs, truth=still)).metrics
    assert other["error_mm"] == pytest.approx(float(u.mean()), rel=1e-4)


def test_errors_are_columns_and_are_tested():
    rows = [
        {"data": "d", "case": f"{i}", "method": m, "status": "done", "error_lung_mm": e + 0.1 * i, "error_lung_before_mm": 3.0, "dice": 0.5}
        for m, e in (("a", 1.0), ("b", 2.0))
        for i in range(6)
    ]
    assert list(tables.titles(rows))[:2] == ["error_lung_mm", "error_lung_before_mm"]
    (test,) = tables.compare_with_baseline(rows, "a")
    assert test["measure"] == "error_lung_mm" and test["p"] < 0.05
    assert "error lung mm" in tables.markdown(rows) and r"\textbf{1.25}" in tables.latex(rows, "b")


def test_fronts_are_compared_where_the_first_measure_is_equal():
    a, b = [(4.0, 1.0), (2.0, 3.0), (1.0, 9.0)], [(5.0, 0.0), (3.0, 1.0), (3.5, 5.0)]
    assert at_level(a, 3.0) == pytest.approx(2.0) and at_level(b, 3.2) == pytest.approx(0.9)  # of two crossings the lower one
    assert math.isnan(at_level(a, 0.5)) and at_level(a, 9.0) == 1.0
    assert compare_fronts({"a": a, "b": b}) == (3.0, {"a": pytest.approx(2.0), "b": 1.0})


def study(**more):
    methods = {"a": {"settings": ["dynamics=svf"], "vary": {"similarity_weight": [0.1, 1]}}, "b": {"vary": {"similarity_weight": [2]}}}
    return Study({"d": RigidCage(1)}, methods, {}, choose_by="error_lung_mm", **more)


def test_a_method_that_varies_is_a_family():
    made = study(front=["error_lung_mm", "error_cage_mm"], baseline="a")
    assert made.methods == {
        "a_0.1": ["dynamics=svf", "similarity_weight=0.1"],
        "a_1": ["dynamics=svf", "similarity_weight=1"],
        "b_2": ["similarity_weight=2"],
    }
    assert made.families == {"a": ["a_0.1", "a_1"], "b": ["b_2"]}
    values = {"a_0.1": (3.0, 1.0), "a_1": (1.0, 3.0), "b_2": (2.0, 1.5)}
    rows = [
        {"data": "d", "case": "0", "method": m, "status": "done", "error_lung_mm": x, "error_cage_mm": y} for m, (x, y) in values.items()
    ]
    found = compared_rows(rows, made)
    assert [(r["method"], r["error_lung_mm"], r["error_cage_mm"]) for r in found] == [("a", 2.0, pytest.approx(2.0)), ("b", 2.0, 1.5)]
    assert compared_rows(rows[:-1], made) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"front": ["error_lung_mm", "dicee"]}, r"no measure 'dicee' \(did you mean 'dice'"),
        ({"front": ["error_lung_mm"]}, "front must be two measures"),
    ],
)
def test_wrong_fronts(more, message):
    with pytest.raises(ConfigError, match=message):
        study(**more)
    with pytest.raises(ConfigError, match=r"vary must be one key with a list"):
        Study({"d": RigidCage(1)}, {"a": {"vary": {"similarity_weight": 3}}}, {})
    with pytest.raises(ConfigError, match=r"did you mean 'settings'"):
        Study({"d": RigidCage(1)}, {"a": {"setting": [], "vary": {"similarity_weight": [3]}}}, {})


def test_scenes_that_cannot_be():
    for wrong in ({"count": 0}, {"shape": [200]}, {"noise": -1.0}, {"motions": -1}, {"first": -1}):
        with pytest.raises(ConfigError):
            RigidCage(**wrong)
    assert list(RigidCage(2, first=9).cases()) == ["cage09", "cage10"]
    assert np.isfinite(case((32, 32), 3).pair.fixed.data.numpy()).all()
