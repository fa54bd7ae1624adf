"""A result measured again on a finer shooting grid."""

import math

import pytest
import torch

import rdmm
from rdmm import LDDMM, DivergenceError, Grid, Image, MultiGaussian, Pair, Problem
from rdmm.optim.multiscale import LBFGS
from rdmm.similarity import SSD
from rdmm.spatial.transform import Affine
from rdmm.stages.base import Chain
from rdmm.stages.deform import Deform
from rdmm.stages.refined import shoot_again

FAST = ["dynamics=lddmm", "similarity=ssd", "optimizer.iterations=[5,5,5]", "affine=none", "smoother=synthetic", "optimizer.finest=1"]


def disks(shape=(40, 36)):
    x = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return [(x - c).norm(dim=0).lt(r).float().numpy() for c, r in ((0.0, 0.5), (0.1, 0.6))]


@pytest.mark.parametrize("key", ["dynamics=svf", "dynamics=lddmm", "dynamics=rdmm"])
def test_a_run_reports_what_a_finer_grid_would_measure(key):
    fixed, moving = disks()
    options = {"fixed_labels": fixed.astype("uint8"), "moving_labels": moving.astype("uint8")}
    plain = rdmm.register(fixed, moving, overrides=[*FAST, key], **options)
    again = rdmm.register(fixed, moving, overrides=[*FAST, key, "output.refined=true"], **options)
    found = {k: v for k, v in again.metrics.items() if k.startswith("refined_")}
    assert set(found) == {"refined_similarity_percent", "refined_map_mm", "refined_map_max_mm", "refined_dice"}
    assert all(math.isfinite(v) for v in found.values())
    assert not any(k.startswith("refined_") for k in plain.metrics)
    assert torch.equal(plain.deformation, again.deformation)
    assert 0 < found["refined_map_mm"] < 0.1 and found["refined_map_mm"] <= found["refined_map_max_mm"]
    assert found["refined_dice"] == pytest.approx(again.metrics["dice"], abs=0.02)


@pytest.mark.parametrize("shapes", [((40, 36), (40, 33)), ((40, 33), (40, 36))])
def test_images_of_other_extents_share_the_shooting_grid(shapes):
    """Without an affine step, what is shot again, and the last snapshot, are the map that was found."""
    fixed, moving = (disks((40, 36))[k][:, : n[1]] for k, n in enumerate(shapes))
    result = rdmm.register(fixed, moving, overrides=[*FAST, "output.refined=true"])
    assert result.metrics["refined_map_mm"] < 0.1 and result.metrics["refined_map_max_mm"] < 0.6
    x = result.grid.identity(torch.zeros(1))
    last = result.map_at(result.animation_snapshots[-1])(x)
    assert float((last - result.pair.total_map(result.result.transform)(x)).norm(dim=1).max()) < 0.2 * min(result.grid.spacing)
    assert result.metrics["sd_log_jacobian"] > 0.01


def test_the_finer_map_stands_on_what_came_before():
    """After an earlier stage, and from an initial map."""
    fixed, moving = (torch.from_numpy(x)[None, None] for x in disks())
    grid = Grid.unit(fixed.shape[2:])
    shifted = Affine(torch.tensor([[1.0, 0, 0.02], [0, 1, -0.01], [0, 0, 1]]))
    pair = Pair(Image(fixed, grid), Image(moving, grid), initial=shifted)
    deform = Deform(Problem(LDDMM(MultiGaussian([0.05, 0.1], [0.5, 0.5])), SSD(), similarity_weight=10), LBFGS((1.0,), (4,)))
    result = Chain([deform, deform])(pair)
    again = shoot_again(result, SSD(), pair)
    assert again is not None
    x = grid.identity(fixed)
    whole = pair.total_map(result.transform)(x)
    assert float((again.total_map(x) - whole).norm(dim=1).max()) < 0.2 * min(grid.spacing)
    assert float((whole - x).norm(dim=1).max()) > 2 * min(grid.spacing)
    moved = float(SSD()(pair.moved_by(result.transform), pair.fixed).sum())
    assert again.similarity == pytest.approx(moved, rel=0.1)


def test_a_finer_flow_that_diverges_leaves_the_result(monkeypatch):
    """The result is kept, and a warning says that there are no refined measures."""

    def diverge(*_):
        raise DivergenceError("the flow crosses too many voxels")

    monkeypatch.setattr("rdmm.registration.entry.shoot_again", diverge)
    result = rdmm.register(*disks(), overrides=[*FAST, "output.refined=true"])
    assert not any(k.startswith("refined_") for k in result.metrics) and result.is_deformed
    assert any("no refined measures" in text for text in result.provenance.warnings)
