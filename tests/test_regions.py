"""Regions with Gaussians of their own: what is typed becomes rows of weights, and what a region alone has moves it alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import zeros

from rdmm import LDDMM, RDMM, ConfigError, Deform, Grid, Image, InitialConditions, Integrator, MultiGaussian, Pair, Problem
from rdmm.config.build import build
from rdmm.config.compose import compose
from rdmm.dynamics.base import energy_drift
from rdmm.optim import Regions
from rdmm.registration.arguments import to_overrides
from rdmm.regularizer import regional
from rdmm.regularizer.metric import Metric
from rdmm.similarity import SSD

GRID = Grid.unit((40, 36))
LUNG = {1: {"sigmas": [0.04, 0.08], "weights": [0.2, 0.8]}, "background": {"sigmas": [0.2], "weights": [1]}}


def halves(grid: Grid = GRID, dtype=torch.float32) -> Pair:
    """Label 1 where x < .5."""
    data = torch.zeros(1, 1, *grid.shape, dtype=dtype)
    labels = data.clone()
    labels[:, :, : grid.shape[0] // 2] = 1
    return Pair(Image(data, grid), Image(data, grid), regions=Image(labels, grid))


def test_each_region_has_channels_of_its_own_and_the_shared_ones():
    smoother = regional(
        {
            "background": {"sigmas": [0.1, 0.04], "weights": [0.5, 0.2, 0.3]},
            "2": {"sigmas": [0.1], "weights": [0.6, 0.4]},
            1: {"weights": [1]},
        },
        shared=[0.2],
    )
    assert smoother.sigmas == (0.04, 0.1, 0.1, 0.2)
    assert smoother.regions == {"background": [0.2, 0.5, 0, 0.3], 2: [0, 0, 0.6, 0.4], 1: [0, 0, 0, 1]}
    assert smoother.weights == (0.2, 0.5, 0.0, 0.3)


@pytest.mark.parametrize("shared", [False, True])
def test_a_momentum_moves_another_region_only_by_what_they_share(shared):
    """Labels without a transition: v = 0 beyond the border, unless a Gaussian is shared."""
    own = {"sigmas": [] if shared else [0.2], "weights": [1]}
    smoother = regional({1: own, "background": own}, shared=[0.2] if shared else [])
    h = Regions(smoother=smoother, smoothing=0.0)(halves(dtype=torch.float64)).weights
    m = torch.zeros(1, 2, *GRID.shape, dtype=torch.float64)
    m[:, 1, 10:15, 15:20] = 1.0
    v, _ = Metric(smoother, 0.0, GRID).velocity(m, h)
    assert float(v[:, 1, :20].abs().max()) > 0.01
    assert (float(v[:, :, 20:].abs().max()) > 0.001) == shared


@pytest.mark.parametrize("boundary", ["zero", "slip"])
@pytest.mark.parametrize("shape", [(48, 40), (28, 26, 24)])
def test_energy_is_conserved_with_transitions_blurred_once(shape, boundary):
    """G is the identity: the metric, its source term and the advection fit together; the drift falls with the voxel."""
    grid = Grid.unit(shape)
    regions = {1: {"sigmas": [0.08], "weights": [1]}, "background": {"sigmas": [0.15, 0.3], "weights": [0.5, 0.5]}}
    smoother = regional(regions, boundary=boundary)
    h = Regions(smoother=smoother, smoothing=0.08)(halves(grid, torch.float64)).weights
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    m = 0.15 * torch.sin(5 * x.flip(1)) * torch.exp(-20 * (x - 0.45).square().sum(1, keepdim=True))
    path = RDMM(smoother, Integrator(steps=6), weight_sigma=0.0).geodesic(InitialConditions(m, h), zeros(grid), (0.0, 0.5, 1.0))
    assert float(path[-1].displacement.abs().max()) > 0.03
    assert energy_drift(path) < 0.01


def test_the_grid_follows_the_narrowest_gaussian_that_a_region_uses():
    """A tenth of a region's weight counts, however heavy another region's Gaussians are; a hundredth of it does not."""
    for weights, narrowest in (([0.2, 0.8], 0.04), ([0.01, 0.99], 0.08)):
        smoother = regional(LUNG | {1: {"sigmas": [0.04, 0.08], "weights": weights}})
        ic = Regions(smoother=smoother)(halves())
        assert RDMM(smoother).preconditioner(ic).narrowest(GRID) == narrowest


def test_as_settings():
    typed = "smoother.regions={1: {sigmas: [.04,.08], weights: [.2,.8]}, background: {sigmas: [.2], weights: [1]}}"
    config = compose(["dynamics=rdmm", "smoother=regions", "initializer=regions", typed])
    found = build(config["initializer"], "initializer")
    assert found.rows() == {1: [0.2, 0.8, 0.0], "background": [0.0, 0.0, 1.0]}
    assert build(config["dynamics"], "dynamics").smoother == found.smoother
    assert to_overrides({"smoother": {"regions": {1: {"sigmas": [0.1], "weights": [1]}}}}) == [
        "smoother.regions={1: {sigmas: [0.1], weights: [1]}}"
    ]
    medium = build(compose(["dynamics=rdmm", "initializer=regions"])["initializer"], "initializer")
    assert medium.rows() == {1: [0.6, 0.3, 0.1], "background": [0.1, 0.3, 0.6]}
    own = compose(["dynamics=rdmm", "initializer=regions", "initializer.weights={3: [0, 0, 1]}"])
    assert build(own["initializer"], "initializer").rows() == {3: [0, 0, 1], "background": [0.1, 0.3, 0.6]}


@pytest.mark.fault(144)
@pytest.mark.parametrize(
    ("regions", "shared", "message"),
    [
        ({"backgroud": LUNG[1]}, [], "whole numbers.*did you mean 'background'"),
        ({"lung": LUNG[1]}, [], "'lung'"),
        ({1: LUNG[1]}, [], "background is missing"),
        (LUNG | {2: {"sigma": [0.1], "weights": [1]}}, [], "did you mean 'sigmas'"),
        (LUNG | {2: {"sigmas": [0.1], "weights": [0.5, 0.5]}}, [], "2: 2 weights for 1 sigmas; give one weight per Gaussian"),
        (LUNG, [0.3], "1: 2 weights for 2 sigmas and 1 of smoother.shared"),
        (LUNG | {2: {"sigmas": [0.1], "weights": [0.5]}}, [], "weights of 2 must be .* sum to 1.* 0.5"),
        (LUNG | {2: {"sigmas": 0.1, "weights": [1]}}, [], "regions.2.sigmas must be a list of numbers, not 0.1"),
        (LUNG | {2: [1, 0, 0]}, [], "regions.2 must have sigmas and weights"),
        (LUNG | {2: {"sigmas": [-0.1], "weights": [1]}}, [], "sigmas must be positive"),
    ],
)
def test_wrong_regions(regions, shared, message):
    with pytest.raises(ConfigError, match=message):
        regional(regions, shared)


@pytest.mark.fault(145)
def test_labels_and_regions_that_do_not_fit(caplog):
    pair, stage = halves(), Regions(smoother=regional(LUNG))
    stage.check(pair)
    assert not caplog.records
    with pytest.raises(ConfigError, match=r"has the labels 2, and none of them has weights of its own: .* names 1"):
        stage.check(replace(pair, regions=Image(2 * pair.regions.data, GRID)))
    stage.check(replace(pair, regions=Image(pair.regions.data + torch.eye(40, 36), GRID)))
    assert "labels 2 of regions have no weights of their own" in caplog.text
    Regions(smoother=regional(LUNG | {7: LUNG[1]})).check(pair)
    assert "has no label 7" in caplog.text


def test_weights_fit_the_gaussians():
    stage = Deform(Problem(RDMM(MultiGaussian([0.1], [1])), SSD()), initializer=Regions(smoother=MultiGaussian([0.1], [1])))
    with pytest.raises(ConfigError, match=r"must have 1 numbers.*or use smoother=regions"):
        stage.check(halves())
    alone = Deform(Problem(LDDMM(regional()), SSD()))
    with pytest.raises(ConfigError, match=r"use dynamics=rdmm initializer=regions"):
        alone.check(halves())
    with pytest.raises(ConfigError, match=r"weights of 1 must be 3 numbers"):
        Regions({1: [1.0]})
    with pytest.raises(ConfigError, match=r"as initializer.background"):
        Regions({1: [1.0], "background": [1.0]})


def test_regions_of_a_moving_image_of_another_extent_stay_where_they_are():
    fixed, moving = Grid((40, 40), np.eye(3)), Grid((40, 26), np.eye(3))
    labels = torch.zeros(1, 1, 40, 26)
    labels[..., :10] = 1
    pair = Pair(Image(torch.zeros(1, 1, 40, 40), fixed), Image(torch.zeros(1, 1, 40, 26), moving), regions=Image(labels, moving))
    ic = Regions()(pair)
    grid = ic.grid(pair.source)
    inside = ic.weights[0, 0, 20] > 0.6
    y = grid.to_world(grid.identity(torch.zeros(1)))[0, 1, 20]
    assert float(y[inside].max()) == pytest.approx(9.0, abs=0.6)
