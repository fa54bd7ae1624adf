"""Given pre-weights are used as they are given, at every scale; free ones can rise from 0; lengths are in the unit that is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import bump, oblique, swirl, zeros

from rdmm import LBFGS, RDMM, SVF, ConfigError, Deform, Grid, Image, InitialConditions, Integrator, MultiGaussian, Pair, Problem
from rdmm.config.compose import compose
from rdmm.dynamics.base import energy_drift
from rdmm.dynamics.coordinates import MomentumCoordinates, PreweightCoordinates
from rdmm.optim import Regions
from rdmm.regularizer.weights import constant
from rdmm.similarity import SSD

SIGMAS = [0.05, 0.1, 0.2, 0.4]
GRID = Grid.unit((48, 40))


def scene(grid: Grid = GRID) -> Pair:
    fixed, moving = (Image(bump(grid, 0.2, s).float(), grid) for s in (0.0, 0.06))
    labels = Image((moving.data > 0.5).float(), grid)
    return Pair(fixed, moving, regions=labels)


def fitted(weights, smoothing=0.05, free=False, inside=(0.3, 0.4, 0.3, 0.0)):
    """A registration with pre-weights from regions; ``weights`` are those of the smoother, which the regions replace."""
    regions = Regions({1: list(inside)}, [0.0, 0.0, 0.0, 1.0], smoothing)
    dynamics = RDMM(MultiGaussian(SIGMAS, weights), Integrator(steps=3), 0.05)
    problem = Problem(dynamics, SSD(), similarity_weight=10.0, barrier=1.0)
    return Deform(problem, LBFGS((0.25, 0.5, 1.0), (4, 3, 2), weights=free), regions)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.3, 0.4, 0.3, 0.0]])
def test_weights_of_the_smoother_do_not_matter_where_regions_give_them(weights, free):
    pair = scene()
    results = [fitted(w, free=free)(pair) for w in ([0.25] * 4, weights)]
    assert torch.equal(*(r.transform.displacement for r in results))


@pytest.mark.parametrize("smoothing", [0.0, 0.03])
def test_given_pre_weights_are_resampled_at_each_scale(smoothing):
    pair, stage = scene(), fitted([0.25] * 4, smoothing)
    ic = stage(pair).ic
    given = stage.initializer(pair).resized(ic.momentum.shape[2:])
    assert torch.equal(ic.weights, given.weights)


def test_a_gaussian_that_regions_never_use_costs_no_resolution():
    """The narrowest Gaussian has no weight in any region: the shooting grid is that of the next one."""
    stage = fitted([0.25] * 4, inside=(0.0, 0.5, 0.5, 0.0))
    without = RDMM(MultiGaussian(SIGMAS[1:], [0.4, 0.4, 0.2]), Integrator(steps=3), 0.05)
    expected = without.shooting_fraction(zeros(GRID), 0.845, without.smoother)
    found = stage.problem.dynamics.preconditioner(stage.initializer(scene()))
    assert without.shooting_fraction(zeros(GRID), 0.845, found) == expected


def test_the_smoothers_own_pre_weights_change_nothing():
    smoother = MultiGaussian(SIGMAS, [0.1, 0.2, 0.3, 0.4])
    dynamics, ic = RDMM(smoother), InitialConditions(torch.zeros(2, 2, *GRID.shape))
    for weights in (None, constant(smoother.weights, GRID, ic.momentum).expand(2, -1, -1, -1)):
        assert dynamics.preconditioner(replace(ic, weights=weights)) is smoother
    assert SVF(smoother).preconditioner(ic) is smoother


@pytest.mark.parametrize("start", [0.0, 1e-12])
def test_free_pre_weights_can_rise_from_zero(start):
    """A price that falls with the widest Gaussian's weight, which is 0 at the start: descent finds it."""
    smoother = MultiGaussian(SIGMAS, [0.3, 0.4, 0.3, 0.0])
    ic = InitialConditions(torch.zeros(1, 2, *GRID.shape), constant(smoother.weights, GRID, torch.zeros(1)).clamp_min(start))
    space = PreweightCoordinates(MomentumCoordinates(smoother, GRID, ic), ic.weights, 0.05)
    x = space.pack(ic)
    assert float((space.unpack(x).weights - ic.weights).abs().max()) < 0.02
    for _ in range(60):
        x = x.detach().requires_grad_()
        (1 - space.unpack(x).weights[:, 3]).mean().backward()
        x = x.detach() - 2 * x.grad
    assert float(space.unpack(x).weights[:, 3].min()) > 0.9


@pytest.mark.parametrize("unit", ["domain", "mm"])
def test_the_weights_sigma_has_a_unit_of_its_own(unit):
    """The same metric and drift, whatever the unit of the smoother's sigmas."""
    grid = oblique((40, 36), (2.0, 2.0))
    lengths = [s * grid.length for s in SIGMAS]
    results = []
    for smoother in (MultiGaussian(SIGMAS, [0.25] * 4), MultiGaussian(lengths, [0.25] * 4, unit="mm")):
        dynamics = RDMM(smoother, Integrator(steps=5), 0.05 * (grid.length if unit == "mm" else 1), unit)
        h = Regions({1: [0.4, 0.3, 0.3, 0.0]}, [0.0, 0.0, 0.0, 1.0], 0.05)(scene(grid)).weights.double()
        path = dynamics.geodesic(InitialConditions(swirl(grid, 0.2), h), zeros(grid), (0.0, 1.0))
        results.append((path[-1].displacement, energy_drift(path)))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-9)
    assert results[1][1] < 0.02


def test_the_smoothing_of_regions_in_millimeters():
    grid = oblique((40, 36), (2.0, 2.0))
    weights = {1: [0.4, 0.3, 0.3, 0.0]}, [0.0, 0.0, 0.0, 1.0]
    a = Regions(*weights, 0.05)(scene(grid)).weights
    b = Regions(*weights, 0.05 * grid.length, "mm")(scene(grid)).weights
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), 4.0])
def test_lengths_that_cannot_be_meant(value):
    smoother = MultiGaussian(SIGMAS, [0.25] * 4)
    with pytest.raises(ConfigError, match="weight_sigma"):
        RDMM(smoother, weight_sigma=value)
    with pytest.raises(ConfigError, match="smoothing"):
        Regions({1: [1.0]}, [1.0], value)
    with pytest.raises(ConfigError, match="weight_unit must be one of domain, mm"):
        RDMM(smoother, weight_unit="cm")


def test_the_units_are_settings():
    config = compose(["dynamics=rdmm", "dynamics.weight_unit=mm", "dynamics.weight_sigma=4", "initializer=regions"])
    assert config["dynamics"]["weight_unit"] == "mm"
    assert config["initializer"]["smoothing_unit"] == "domain"


def test_the_terms_sum_to_the_total():
    """The barrier is a term of its own, in the result and in every row of the history."""
    grid = Grid.unit((24, 24))
    x = grid.identity(torch.zeros(1))
    fixed, moving = (Image(torch.sin(k * x[:, :1]) + x[:, 1:], grid) for k in (9.0, 25.0))
    problem = Problem(SVF(MultiGaussian([0.03], [1.0]), Integrator(steps=3)), SSD(), similarity_weight=1000.0, barrier=100.0)
    result = Deform(problem, LBFGS((1.0,), (15,)))(Pair(fixed, moving))
    for row in (result.energy, *result.history):
        terms = sum(row[k] for k in ("similarity", "velocity", "weights", "landmarks", "barrier"))
        assert row["total"] == pytest.approx(terms, rel=1e-5)
    assert max(row["barrier"] for row in result.history) > 0
    assert np.isfinite(result.energy["barrier"])
