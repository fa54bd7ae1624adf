"""The coarse-to-fine predictor: the map of the swapped pair is the inverse, whatever the weights, and a pair of equal images stays."""

import pytest
import torch
from conftest import GRIDS, blobs, oblique
from test_networks import SMOOTHER, pair_of, randomize_weights

import rdmm
from networks import model as models
from networks.pyramid import Pyramid, correlation
from rdmm import LDDMM, RDMM, SVF, ConfigError, Deform, Image, Integrator, Pair, Problem
from rdmm.config.compose import compose
from rdmm.data.training.pairs import SyntheticPairs
from rdmm.kernels.available import set_threads
from rdmm.optim.multiscale import LBFGS, NoOptimizer
from rdmm.similarity import SSD
from rdmm.spatial.grid import Grid
from rdmm.stages.base import Chain, Skip
from rdmm.stages.deform import learned
from rdmm.stages.halfway import walk
from train.plan import TrainingPlan, build_objective, plan_trainings

SMALL = {"features": [4, 4, 4], "radii": [1, 1, 2], "hidden": 6}


def pyramid(grid: Grid, size: float = 0.2, **more) -> Pyramid:
    return randomize_weights(Pyramid(SMOOTHER, grid.shape, **SMALL, **more), size)


def stage(network: Pyramid, dynamics=SVF, optimizer=None, steps: int = 6) -> Chain:
    problem = Problem(dynamics(SMOOTHER, Integrator(steps=steps)), SSD(), similarity_weight=10.0)
    return learned(Skip(), Deform(problem, optimizer or NoOptimizer(), network), 1)


def in_voxels(u: torch.Tensor, grid: Grid) -> torch.Tensor:
    return u / torch.tensor(grid.spacing, dtype=u.dtype).view(1, -1, *(1,) * grid.ndim)


def swapped(pair: Pair) -> Pair:
    return Pair(pair.moving, pair.fixed)


@pytest.mark.parametrize(("name", "dynamics"), [("2d", SVF), ("2d", RDMM), ("3d", LDDMM)])
def test_the_map_of_the_swapped_pair_is_the_inverse(name, dynamics):
    """For random weights. It is the inverse to rounding; going there and back misses a voxel only by what linear interpolation between
    voxels costs."""
    grid = GRIDS[name]
    pair = Pair(*(Image(blobs(grid, s), grid) for s in (0, 1)))
    network = pyramid(grid, {"2d": 0.2, "3d": 0.13}[name], weights=dynamics is RDMM).double()
    there, back = stage(network, dynamics)(pair), stage(network, dynamics)(swapped(pair))
    x = grid.identity(pair.fixed.data)
    moved = in_voxels(there.transform(x) - x, grid).abs().max()
    assert 0.3 < float(moved) < 2  # the law says nothing about a map that is the identity
    assert float(in_voxels(back.transform(x) - there.inverse(x), grid).abs().max()) < 1e-9
    assert float(in_voxels(back.transform(there.transform(x)) - x, grid).abs().mean()) < 0.003 * float(moved)


def test_equal_images_stay_where_they_are(grid):
    image = pair_of(grid).fixed
    result = stage(pyramid(grid))(Pair(image, image))
    x = grid.identity(image.data)
    assert float((result.transform(x) - x).abs().max()) == 0


def test_correlation_finds_the_shift():
    """Channel k of the cost volume is high where y, shifted by the k-th offset, equals x."""
    x = torch.randn(1, 8, 12, 10)
    y = torch.roll(x, (1, -2), (2, 3))  # y at p + (1, -2) is x at p
    best = correlation(x, y, 2)[0, :, 4:-4, 4:-4].argmax(0)
    assert set(best.flatten().tolist()) == {(1 + 2) * 5 + (-2 + 2)}


def test_each_level_learns_and_any_grid_goes_in():
    grid = oblique((20, 26, 14), (1.0, 1.0, 2.5))
    network = pyramid(GRIDS["3d"], weights=True)
    problem = Problem(RDMM(SMOOTHER, Integrator(steps=2)), SSD(), similarity_weight=10.0)
    levels, halves = walk(network, pair_of(grid), problem.dynamics)
    assert [level.ic.weights is not None for level in levels] == [False, False, True]
    assert isinstance(levels[-1].dynamics, RDMM)
    halves.total.displacement.square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in network.parameters())


def test_bits_do_not_depend_on_threads_and_only_convolutions_are_in_half_precision():
    grid = Grid.unit((64, 48))
    pair, dynamics = pair_of(grid), SVF(SMOOTHER, Integrator(steps=2))
    network, found = pyramid(grid), []
    for threads in (1, 2):
        set_threads(threads)
        with torch.no_grad():
            found.append(walk(network, pair, dynamics)[1].total.displacement)
    assert torch.equal(*found)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        half = walk(network, pair, dynamics)[1].total.displacement
    assert half.dtype == torch.float32 and not torch.equal(half, found[0])
    assert float((half - found[0]).abs().max()) < 0.1 * float(half.abs().max())


def test_refinement_goes_on_from_the_whole_prediction():
    grid = GRIDS["2d"]
    network, pair = pyramid(grid, 0.05), pair_of(grid)
    alone, refined = stage(network)(pair), stage(network, optimizer=LBFGS([1.0], [5]))(pair)
    x = grid.identity(pair.fixed.data)
    assert torch.equal(refined.before(x), alone.transform(x)) and len(refined.history) == 5
    assert refined.energy["similarity"] < alone.energy["similarity"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"features": [4]}, "2 or more"),
        ({"radii": [1, 1]}, "one per level"),
        ({"radii": [0, 1, 1]}, "radii"),
        ({"smoothing": -1.0}, "smoothing"),
    ],
)
def test_wrong_pyramids_say_so(more, message):
    with pytest.raises(ConfigError, match=message):
        Pyramid(SMOOTHER, (32, 32), **{**SMALL, **more})


def test_a_pyramid_has_its_own_steps():
    network = pyramid(GRIDS["2d"])
    with pytest.raises(ConfigError, match=r"network\.steps=1"):
        learned(Skip(), Deform(Problem(SVF(SMOOTHER), SSD()), NoOptimizer(), network), 2)
    with pytest.raises(ConfigError, match="stages=learned"):
        network(pair_of(GRIDS["2d"]))


def plan_of(*overrides: str) -> TrainingPlan:
    """The training of a small pyramid by its option."""
    shared = ["data=shapes", "shape=[24,24]", "affine=none", "similarity=ssd", "network/predictor=pyramid"]
    small = ["network.predictor.features=[4,4]", "network.predictor.radii=[1,1]", "network.predictor.hidden=4"]
    return plan_trainings(compose([*shared, *small, *overrides], "train"), [])[0]


def test_a_pyramid_trains_and_registers(tmp_path):
    """From the option network/predictor=pyramid to --weights, and to refinement from it."""
    plan, data = plan_of("dynamics=rdmm", "penalty=omt", "integrator.steps=2"), SyntheticPairs((24, 24))
    assert not plan.trainer.both_directions
    networks = models.build_networks(plan.settings)
    objective = build_objective(plan, networks)
    losses = []
    for step in range(3):
        networks.zero_grad()
        outcome = objective(data.pair(0), step, 0, False)
        outcome.loss.backward()
        losses.append(float(outcome.loss.detach()))
        length = sum(p.grad.square().sum() for p in networks.parameters()).sqrt()
        for p in networks.parameters():
            p.data -= 0.1 * p.grad / length
    assert losses[-1] < 0.99 * losses[0] and outcome.ic[-1].weights is not None
    models.save(tmp_path / "m.safetensors", networks, plan.settings, {})
    pair, weights = data.pair(0).pair, str(tmp_path / "m.safetensors")
    refine = ["optimizer=refine", "optimizer.iterations=[2]"]
    predicted = rdmm.register(pair.fixed, pair.moving, weights=weights, overrides=["affine=none"])
    refined = rdmm.register(pair.fixed, pair.moving, weights=weights, overrides=["affine=none", *refine])
    assert predicted.result.ic is None and len(refined.result.history) == 2
    assert refined.energy["similarity"] <= predicted.energy["similarity"]


def test_a_pyramid_has_levels_instead_of_steps():
    plan = plan_of("network.steps=2")
    with pytest.raises(ConfigError, match=r"network\.steps=1"):
        build_objective(plan, models.build_networks(plan.settings))
