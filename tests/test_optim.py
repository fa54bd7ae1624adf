import math
import threading

import pytest
import torch

from rdmm import SVF, ConfigError, DivergenceError, Grid, Image, InitialConditions, MultiGaussian, Pair, Problem
from rdmm.optim.lbfgs import minimize
from rdmm.optim.multiscale import LBFGS, VOXEL_OF_SIGMA
from rdmm.runtime.interrupt import stop
from rdmm.similarity import SSD


def rosenbrock(x: torch.Tensor) -> tuple[float, torch.Tensor]:
    x = x.detach().requires_grad_()
    f = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
    return float(f.detach()), torch.autograd.grad(f, x)[0]


def run(objective, x, **keywords):
    settings = {"iterations": 200, "first_step": lambda d: 0.1 / float(d.norm()), "tolerance": 0.0}
    return minimize(objective, x, **{**settings, **keywords})


def test_rosenbrock():
    x, f = run(rosenbrock, torch.full((10,), -1.2, dtype=torch.float64))
    assert f < 1e-15
    assert torch.allclose(x, torch.ones(10, dtype=torch.float64), atol=1e-6)


def test_one_evaluation_a_trial():
    """A quadratic takes hardly more evaluations than iterations."""
    count, scale = 0, torch.logspace(0, 2, 20, dtype=torch.float64)

    def quadratic(x):
        nonlocal count
        count += 1
        return float((scale * x * x).sum() / 2), scale * x

    iterations = []
    run(quadratic, torch.ones(20, dtype=torch.float64), iterations=30, report=lambda i, f: iterations.append(i))
    assert count <= 1.5 * len(iterations) + 2


def test_values_never_rise_and_the_best_is_kept():
    seen = []
    _, f = run(rosenbrock, torch.full((6,), -1.2, dtype=torch.float64), iterations=30, report=lambda i, f: seen.append(f))
    assert seen == sorted(seen, reverse=True)
    assert f == seen[-1]


@pytest.mark.parametrize("kind", ["nan", "inf", "raises"])
@pytest.mark.fault(55)
def test_backs_off_from_where_the_energy_diverges(kind):
    """Beyond |x| = 2 the objective is not finite; the minimum at 1.5 is found all the same."""

    def walled(x):
        if float(x.abs().max()) > 2:
            if kind == "raises":
                raise DivergenceError("wall")
            return (math.nan if kind == "nan" else math.inf), torch.full_like(x, math.nan)
        return float(((x - 1.5) ** 2).sum()), 2 * (x - 1.5)

    x, f = run(walled, torch.zeros(3, dtype=torch.float64), first_step=lambda d: 1e6)
    assert f < 1e-10
    assert torch.isfinite(x).all()


@pytest.mark.fault(56)
def test_recovers_from_a_single_nan():
    count = 0

    def once(x):
        nonlocal count
        count += 1
        f, g = rosenbrock(x)
        return (math.nan, g) if count == 5 else (f, g)

    assert run(once, torch.full((4,), -1.2, dtype=torch.float64))[1] < 1e-12


@pytest.mark.fault(57)
def test_a_misleading_curvature_falls_back_to_a_gradient_step():
    """|x| has a kink that defeats the quadratic model."""
    x, f = run(lambda x: (float(x.abs().sum()), torch.sign(x)), torch.tensor([1.0, -0.37], dtype=torch.float64), iterations=100)
    assert f < 0.2
    assert torch.isfinite(x).all()


def test_start_that_is_not_finite():
    with pytest.raises(DivergenceError, match="start"):
        run(lambda x: (math.nan, x), torch.zeros(2))


def test_stops_where_it_is_when_told():
    stop.set()
    try:
        x, _ = run(rosenbrock, torch.full((4,), -1.2, dtype=torch.float64))
    finally:
        stop.clear()
    assert torch.equal(x, torch.full((4,), -1.2, dtype=torch.float64))
    assert isinstance(stop, threading.Event)


def test_stops_by_relative_decrease():
    seen = []
    run(rosenbrock, torch.full((6,), -1.2, dtype=torch.float64), tolerance=0.9, report=lambda i, f: seen.append(f))
    assert len(seen) <= 12


def test_steps_that_promise_nothing_are_not_tried():
    """At a kink, as interpolation makes them, every step goes up whatever the slope says. The search takes ever shorter ones, but
    none that promises less than the tolerance."""

    def evaluations(tolerance):
        count = 0

        def kinked(x):
            nonlocal count
            count += 1
            return 1 + float(x.abs().sum()), torch.full_like(x, -1e-5)

        run(kinked, torch.zeros(2, dtype=torch.float64), tolerance=tolerance, iterations=3)
        return count

    assert evaluations(1e-6) <= 3
    assert evaluations(0.0) > 6


@pytest.mark.parametrize("shape", [(64, 48), (40, 32, 36)])
def test_the_shooting_grid_is_as_fine_as_the_smoother_needs(shape):
    """Its voxels are voxel_of_sigma times the narrowest Gaussian, and at .845 the Gaussian passes a thousandth of the shortest wave
    that they hold; it has at most .7 of the image's resolution; given a resolution, it is that."""
    grid = Grid.unit(shape)
    image = Image(torch.rand(1, 1, *shape, generator=torch.manual_seed(0)), grid)
    smoother = MultiGaussian([0.02, 0.04, 0.1], [0.05, 0.5, 0.45])  # the first has too little weight to matter

    def shot(**settings):
        problem = Problem(SVF(smoother), SSD(), barrier=0)
        ic = InitialConditions(torch.zeros(1, len(shape), *shape))
        return LBFGS((1.0,), (1,), **settings)(problem, Pair(image, image), ic)[0].grid(image)

    for share in (0.6, 0.845, 1.2):
        voxel = max(min(grid.spacing) / 0.7, share * 0.04)
        expected = [round(e / max(h, voxel)) + 1 for e, h in zip(grid.extent, grid.spacing, strict=True)]
        assert list(shot(voxel_of_sigma=share).shape) == expected
    assert shot().shape == shot(voxel_of_sigma=VOXEL_OF_SIGMA[len(shape)]).shape
    assert math.exp(-((math.pi / 0.845) ** 2) / 2) == pytest.approx(1e-3, rel=0.01)
    assert shot(shooting=0.5).shape == grid.scaled(0.5).shape
    assert shot(voxel_of_sigma=0.1).shape == grid.scaled(0.7).shape
    assert shot(voxel_of_sigma=0.1, finest=1.0).shape == grid.shape


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": [0, 1, 1]},
        {"scales": []},
        {"scales": [1.0, 0.5, 0.25]},
        {"scales": [0.5]},
        {"shooting": 0.0},
        {"shooting": [1.0]},
        {"memory": 0},
        {"voxel_of_sigma": 0.0},
    ],
)
@pytest.mark.fault(62)
def test_wrong_settings(settings):
    with pytest.raises(ConfigError):
        LBFGS(**settings)


@pytest.mark.parametrize("told", [True, False])
def test_an_objective_with_a_schedule(told):
    """A price that rises from iteration to iteration: told of the change, the search goes on; untold, it takes the rise for
    a lack of progress and stops short."""
    iterations = []

    def price(x, step):
        return 0.5 * step * (x - 1).square().sum(), step * (x - 1)

    def objective(x):
        f, g = rosenbrock(x)
        more, gradient = price(x, len(iterations))
        return f + float(more), g + gradient

    def change(x):
        (f1, g1), (f0, g0) = price(x, len(iterations)), price(x, len(iterations) - 1)
        return float(f1 - f0), g1 - g0

    start = torch.full((6,), -1.2, dtype=torch.float64)
    x, _ = run(objective, start, report=lambda i, f: iterations.append(i), iterations=60, change=change if told else None)
    assert (float((x - 1).abs().max()) < 1e-3) == told
