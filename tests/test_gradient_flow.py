"""Gradient flows of particles: the closed form of transport, monotone decrease, test particles, the figure of a study."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.study import Study, table_rows
from rdmm import ConfigError, Measure
from rdmm.data import Clouds
from rdmm.similarity import EnergyDistance, HausdorffDivergence, KernelDistance, SinkhornDivergence, SoftMinDivergence
from rdmm.spatial.pair import Pair
from rdmm.stages import GradientFlow

SIMILARITIES = {
    "softmin": SoftMinDivergence(0.1),
    "hausdorff": HausdorffDivergence(0.1),
    "kernel": KernelDistance(sigmas=[0.3]),
    "energy": EnergyDistance(),
    "sinkhorn": SinkhornDivergence(0.1),
    "wasserstein 1": SinkhornDivergence(0.05, p=1),
    "unbalanced": SinkhornDivergence(0.1, 0.5),
}


def blob(n, center, seed=0):
    x = torch.rand(1, 2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Measure(0.2 * x + torch.tensor(center, dtype=torch.float64).view(1, 2, 1))


def test_transport_of_a_translation_decays_exponentially():
    """dx/dt = y - x: after Euler steps dt the rest is (1 - dt)^steps of the way."""
    moving = blob(20, [0.1, 0.1])
    fixed = Measure(moving.points + 0.4)
    similarity = SinkhornDivergence(0.1, tolerance=1e-9, iterations=1000)
    flow = GradientFlow(similarity, duration=1.0, step=0.1)(Pair(fixed, moving)).transform
    assert torch.allclose(flow(moving.points), fixed.points - 0.4 * 0.9**10, atol=1e-6)
    assert torch.allclose(flow.at(0.5), fixed.points - 0.4 * 0.9**5, atol=1e-6)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_the_similarity_falls(name):
    moving, fixed = blob(16, [0.1, 0.2]), blob(14, [0.5, 0.4], 1)
    similarity = SIMILARITIES[name]
    done = GradientFlow(similarity, duration=0.4, step=0.05)(Pair(fixed, moving))
    values = [float(similarity(Measure(done.transform.at(t)), fixed)) for t in (0.0, 0.2, 0.4)]
    assert values[0] > values[1] > values[2] == pytest.approx(done.energy["similarity"])


@pytest.mark.parametrize("name", ["kernel", "sinkhorn"])
def test_test_particles_move_as_the_particles_among_them(name):
    """A test particle at a particle's place takes its path; the inverse takes all back."""
    moving, fixed = blob(16, [0.1, 0.2]), blob(14, [0.5, 0.4], 1)
    done = GradientFlow(SIMILARITIES[name], duration=0.4, step=0.05)(Pair(fixed, moving))
    some = torch.cat([moving.points[:, :, 3:5], torch.tensor([[[0.3], [0.3]]], dtype=torch.float64)], 2)
    moved = done.transform(some)
    assert torch.allclose(moved[:, :, :2], done.transform(moving.points)[:, :, 3:5], atol=1e-4)
    assert float((moved - some).norm(dim=1).min()) > 0.05
    back = done.inverse(done.transform(moving.points))
    assert float((back - moving.points).norm(dim=1).mean()) < 0.1 * float((moved - some).norm(dim=1).mean())


def test_a_study_draws_the_flows(tmp_path):
    data = Clouds(points=24)
    assert list(data.cases()) == ["crescent", "outliers"]
    methods = {"energy": ["similarity=energy"], "robust": ["similarity.blur=0.1", "similarity.reach=0.3"]}
    base = ["stages=gradient_flow", "affine=none", "gradient_flow.duration=0.2", "gradient_flow.step=0.1"]
    rows = list(table_rows(Study({"clouds": data}, methods, {}, limit=1, style={"formats": ["png"], "dpi": 40}), base, "cpu", 0, tmp_path))
    assert [(r["method"], r["status"]) for r in rows] == [("energy", "done"), ("robust", "done")]
    assert all(r["distance_after_mm"] < r["distance_before_mm"] for r in rows)
    assert (tmp_path / "crescent.png").read_bytes().startswith(b"\x89PNG")


def test_clouds_are_the_same_for_a_seed():
    a, b, c = (Clouds(points=30, seed=s).cases()["outliers"]().pair for s in (0, 0, 1))
    assert torch.equal(a.fixed.points, b.fixed.points) and not torch.equal(a.fixed.points, c.fixed.points)
    assert a.moving.points.shape == (1, 2, 30)


@pytest.mark.fault(143)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientFlow(EnergyDistance(), step=0.0), "step"),
        (lambda: GradientFlow(EnergyDistance(), duration=0.01, step=0.05), "duration"),
        (lambda: GradientFlow(EnergyDistance()).check(Pair(curve(), curve())), "points without cells"),
        (lambda: GradientFlow(SinkhornDivergence(cost="features")).check(Pair(blob(3, [0, 0]), blob(3, [1, 1]))), "similarity.cost=points"),
        (lambda: Clouds(points=2), "clouds.points must be at least 20"),
    ],
)
def test_faults_of_flows(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def curve():
    return Measure(torch.rand(1, 2, 3), cells=torch.as_tensor(np.array([[0, 1], [1, 2]])))
