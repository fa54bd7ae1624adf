"""The penalty on pre-weights is per unit of similarity: one factor serves any similarity, intensity scale and similarity weight."""

from dataclasses import replace

import pytest
import torch
from conftest import bump, preweights, swirl

from rdmm import LBFGS, RDMM, ConfigError, Deform, Grid, Image, InitialConditions, Integrator, MultiGaussian, Pair, Problem
from rdmm.config.compose import compose
from rdmm.data.synthetic.strain import strain, strain_scene
from rdmm.optim.multiscale import _Level
from rdmm.regularizer import WeightPenalty
from rdmm.regularizer.penalty import omt
from rdmm.similarity import SSD
from rdmm.spatial import ops
from rdmm.spatial.gaussian import gaussian

GRID = Grid.unit((32, 28))
SMOOTHER = MultiGaussian([0.05, 0.1, 0.2, 0.4], [0.1, 0.2, 0.3, 0.4])


def pair(scale: float = 1.0) -> Pair:
    fixed, moving = (Image(scale * bump(GRID, 0.2, s).float(), GRID) for s in (0.0, 0.06))
    return Pair(fixed, moving)


def problem(weight: float = 10.0, **factors) -> Problem:
    return Problem(RDMM(SMOOTHER, Integrator(steps=3), 0.05), SSD(), WeightPenalty(**factors), weight, 1.0)


def test_the_penalty_is_a_multiple_of_the_similarity():
    ic = InitialConditions(swirl(GRID, 0.2).float(), preweights(GRID).float())
    energy, _ = problem(omt=3.0).energy(ic, pair())
    smoothed = problem().dynamics.weight_penalty(lambda h, sigma, *_: omt(_weights(h, sigma), SMOOTHER, GRID), ic, pair().source, 0)
    assert float(energy.weights) == pytest.approx(float(3 * energy.similarity * smoothed), rel=1e-5)
    assert float(energy.weights) > 0


def _weights(h, sigma):
    from rdmm.regularizer.weights import smooth

    return smooth(h, sigma, GRID)


def test_the_intensity_scale_and_the_similarity_weight_do_not_change_the_result():
    """Intensities 8 times as large and a weight 64 times smaller: the same registration, without another factor."""
    results = [Deform(problem(10.0 / k**2), LBFGS((0.5, 1.0), (4, 4)))(pair(k)) for k in (1.0, 8.0)]
    a, b = (r.ic.weights for r in results)
    assert torch.allclose(a, b, atol=1e-4)
    assert float((a - a.mean((2, 3), keepdim=True)).abs().max()) > 0.01


@pytest.mark.parametrize("range_", [0.0, 2.0])
def test_the_search_follows_the_schedule(range_):
    """As the iteration goes on by one, the objective and its gradient change by what ``penalty_change`` says: by nothing without Range."""
    ic = InitialConditions(swirl(GRID, 0.2).float(), preweights(GRID).float())
    level = _Level(problem(range=range_, decay=3.0), pair(), 0, 9, [{}] * 4, SMOOTHER)
    space = level.problem.dynamics.coordinates(ic, pair().source, True, SMOOTHER)
    x = space.pack(ic)
    more, gradient = level.penalty_change(space, x)
    (f0, g0), (f1, g1) = (replace(level, history=[{}] * n).objective(space, x) for n in (3, 4))
    assert more == pytest.approx(f1 - f0, abs=1e-6 * abs(f0))
    assert torch.allclose(gradient, g1 - g0, atol=1e-5 * float(g0.abs().max()))
    assert (more == 0) == (range_ == 0)


def test_without_range_omt_acts_from_the_start():
    h = preweights(GRID)
    first, late = (WeightPenalty()(h, 0.0, SMOOTHER, GRID, step) for step in (0, 500))
    assert torch.equal(first, late)
    assert float(first) == pytest.approx(2 * float(omt(h, SMOOTHER, GRID)), rel=1e-6)


def test_sigma_is_small_where_the_anatomy_is_strained():
    """On a typical scene in which one organ deforms: the correlation of -sigma with the true strain, against those of its mirror images."""
    scene = strain_scene(51, (64, 64))
    grid, truth = scene.pair.fixed.grid, scene.truth
    dynamics = RDMM(MultiGaussian([0.04, 0.12, 0.3], [0.3, 0.3, 0.4]), Integrator(steps=3))
    result = Deform(Problem(dynamics, SSD(), WeightPenalty(), 10.0, 30.0), LBFGS((0.5, 1.0), (10, 10)))(scene.pair)
    sigma = dynamics.initial_sigma(result.ic, scene.pair.source)
    found = -ops.sample(sigma, result.transform(grid.identity(sigma)), result.ic.grid(scene.pair.source))[0, 0]
    target = gaussian(strain(truth.displacement, grid), 0.05, grid)[0, 0]
    body = (truth.regions["organ"] + truth.regions["rest"])[0, 0] > 0
    own, *controls = (
        float(torch.corrcoef(torch.stack([x[body], target[body]]))[0, 1]) for x in (found, found.flip(0), found.flip(1), found.T)
    )
    assert own > 0.5
    assert own > max(controls) + 0.3


def test_experiments_have_no_factors_of_their_own():
    for name in ("synthetic_optimized", "brain_optimized", "knee_optimized"):
        assert compose([f"experiment={name}"])["penalty"] == compose(["dynamics=rdmm", "penalty=omt"])["penalty"], name


@pytest.mark.parametrize("name", ["omt", "range", "tv", "power", "decay"])
def test_a_negative_factor_is_named(name):
    with pytest.raises(ConfigError, match=rf"penalty\.{name} must be >=? 0, not -1"):
        WeightPenalty(**{name: -1.0})
