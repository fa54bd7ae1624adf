"""Networks: shapes of any size, what an untrained one predicts, keypoints, model files, and their place in a registration."""

import sys

import numpy as np
import pytest
import torch
from conftest import GRIDS, blobs, oblique

from networks import model as models
from networks.affine import AffineNet, fit_affine
from networks.predictor import Predictor
from networks.unet import Basic, CoarseUNet, Residual, space_to_depth
from rdmm import LDDMM, RDMM, Chain, ConfigError, Deform, Image, InputError, Integrator, MultiGaussian, Pair, Problem
from rdmm.optim.multiscale import LBFGS, NoOptimizer
from rdmm.similarity import SSD
from rdmm.spatial.grid import Grid
from rdmm.spatial.ops import sample
from rdmm.spatial.transform import Affine, Identity
from rdmm.stages.base import Skip
from rdmm.stages.deform import learned

SMOOTHER = MultiGaussian([0.05, 0.1], [0.6, 0.4])
TINY = Basic([4, 4, 4, 4, 4])


def pair_of(grid: Grid, seed: int = 0) -> Pair:
    a, b = (Image(blobs(grid, s).float(), grid) for s in (seed, seed + 1))
    return Pair(a, b)


def randomize_weights(net: torch.nn.Module, size: float = 0.2) -> torch.nn.Module:
    """Random weights, always the same: the last layers would start near zero."""
    torch.manual_seed(1)
    for p in net.parameters():
        p.data = size * torch.randn_like(p)
    return net


def test_folding_keeps_every_voxel():
    x = torch.randn(2, 3, 6, 8, 4)
    y = space_to_depth(x, 2)
    assert y.shape == (2, 24, 3, 4, 2)
    assert torch.equal(y.flatten().sort().values, x.flatten().sort().values)
    assert torch.equal(y[:, 0], x[:, 0, ::2, ::2, ::2])  # the first voxel of each block


@pytest.mark.parametrize("backbone", [TINY, Residual([4, 6], 1)])
@pytest.mark.parametrize("shape", [(33, 50), (20, 17, 9)])
def test_any_size_goes_in_and_the_coarser_one_comes_out(backbone, shape):
    for reduction in (1, 2, 4):
        net = CoarseUNet(backbone, len(shape), 2, 5, reduction)
        out = net(torch.randn(2, 2, *shape))
        assert out.shape == (2, 5, *(-(-n // reduction) for n in shape))
        assert float(out.detach().abs().max()) < 0.2  # it starts near zero


def test_an_untrained_network_predicts_next_to_nothing(grid):
    net = Predictor(SMOOTHER, TINY, grid.shape, weights=True)
    pair = pair_of(grid)
    ic = net(pair)
    transform = RDMM(SMOOTHER, Integrator(steps=2)).shoot(ic, pair.source)
    assert float(transform.displacement.detach().abs().max()) < 1e-3
    assert torch.allclose(ic.weights.square().sum(1), torch.ones(()), atol=1e-5)
    own = torch.tensor(SMOOTHER.weights).sqrt().view(1, -1, *(1,) * grid.ndim)
    assert float((ic.weights - own).detach().abs().max()) < 0.01  # the smoother's own weights


def test_a_network_sees_pairs_at_the_resolution_it_was_trained_at():
    """A finer grid of the same frame: the same momentum grid, nearly the same momentum."""
    coarse = oblique((24, 20, 14), (1.5, 1.5, 1.5))
    fine = coarse.resized([2 * n - 1 for n in coarse.shape])
    net = randomize_weights(Predictor(SMOOTHER, TINY, coarse.shape))
    here = pair_of(coarse)
    there = Pair(*(Image(sample(i.data, fine.identity(i.data), coarse), fine) for i in (here.fixed, here.moving)))
    with torch.no_grad():
        a, b = net(here).momentum, net(there).momentum
    assert a.shape == b.shape
    assert float((a - b).abs().max()) < 0.25 * float(a.abs().max())  # a random network is rough: a low-pass shows
    with pytest.raises(InputError, match=r"for 3D images, not for 2D images.*without weights, the one that comes with rdmm is used"):
        net(pair_of(GRIDS["2d"]))


def test_the_gradient_of_the_objective_reaches_every_parameter(grid):
    """Against finite differences, in float64, along a random direction of all parameters of both networks."""
    net = randomize_weights(Predictor(SMOOTHER, TINY, grid.shape, weights=True)).double()
    pair = Pair(*(Image(blobs(grid, s), grid) for s in (0, 1)))
    problem = Problem(RDMM(SMOOTHER, Integrator(steps=2, adjoint=False)), SSD(), similarity_weight=10.0)

    parameters = list(net.parameters())
    torch.manual_seed(0)
    directions = [torch.randn_like(p) for p in parameters]

    def energy(t: float) -> torch.Tensor:
        for p, e in zip(parameters, directions, strict=True):
            p.data += t * e
        out = problem.energy(net(pair), pair)[0].total.sum()
        for p, e in zip(parameters, directions, strict=True):
            p.data -= t * e
        return out

    gradients = torch.autograd.grad(energy(0.0), parameters)
    assert all(float(g.abs().max()) > 0 for g in gradients)
    slope = sum(float((g * e).sum()) for g, e in zip(gradients, directions, strict=True))
    with torch.no_grad():
        h = 1e-6
        difference = float(energy(h) - energy(-h)) / (2 * h)
    assert slope == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("d", [2, 3])
def test_the_fit_of_points_is_the_map_they_went_through(d):
    torch.manual_seed(0)
    x = torch.rand(4, d, 12, dtype=torch.float64)
    linear = torch.eye(d, dtype=torch.float64) + 0.2 * torch.randn(4, d, d, dtype=torch.float64)
    shift = torch.randn(4, d, 1, dtype=torch.float64)
    y = linear @ x + shift
    matrix = fit_affine(x, y, 1e-12)
    assert torch.allclose(matrix[:, :d, :d], linear, atol=1e-6)
    assert torch.allclose(matrix[:, :d, d:], shift, atol=1e-6)
    assert torch.allclose(matrix @ fit_affine(y, x, 1e-12), torch.eye(d + 1, dtype=torch.float64), atol=1e-6)
    translation = fit_affine(x, x + shift, 1.0)  # the ridge holds the linear part only
    assert torch.allclose(translation[:, :d, d:], shift)
    assert torch.allclose(translation[:, :d, :d], torch.eye(d, dtype=torch.float64))


def test_affine_networks_do_not_ask_where_files_lie(grid):
    """The moving image moved by kilometres in the world: the map follows, the overlap does not matter."""
    net = randomize_weights(AffineNet(TINY, grid.shape, keypoints=8, steps=1))
    pair = pair_of(grid)
    far = np.asarray(pair.moving.grid.affine).copy()
    far[:-1, -1] += 5000.0
    moved = Pair(pair.fixed, Image(pair.moving.data, Grid(grid.shape, far)))
    with torch.no_grad():
        here, there = (Affine(net.matrices(p)[-1].double()).in_world(grid)[0] for p in (pair, moved))
    here[:-1, -1] += 5000.0
    assert np.allclose(here, there, atol=0.02)
    result = net(pair)
    x = torch.rand(1, grid.ndim, 9, dtype=torch.float64)
    assert torch.allclose(result.inverse(result.transform(x)), x, atol=1e-6)


def test_refining_steps_of_the_affine_network_compose():
    """Each further step is the fit for the moving image seen through the map so far."""
    grid = GRIDS["2d"]
    net = randomize_weights(AffineNet(TINY, grid.shape, keypoints=8, steps=3))
    pair = pair_of(grid)
    with torch.no_grad():
        first, second, third = net.matrices(pair)
        single = randomize_weights(AffineNet(TINY, grid.shape, keypoints=8, steps=1))
        again = single.matrices(pair.with_initial(Affine(second)))[0]
    assert torch.allclose(second @ again, third, atol=1e-5)
    assert not torch.allclose(first, third)


def write_small_model(path, *, weights=True, affine=True, shape=(24, 24)):
    """A model file of small networks."""
    smoother = {"_target_": "rdmm.regularizer.MultiGaussian", "sigmas": [0.05, 0.1], "weights": [0.6, 0.4]}
    backbone = {"_target_": "networks.unet.Basic", "features": [4, 4, 4, 4, 4]}
    integrator = {"_target_": "rdmm.dynamics.Integrator", "steps": 3}
    name = "RDMM" if weights else "LDDMM"
    settings = {
        "predictor": {
            "_target_": "networks.predictor.Predictor",
            "smoother": smoother,
            "backbone": backbone,
            "shape": list(shape),
            "weights": weights,
        },
        "steps": 2,
        "register": {
            "dynamics": {"_target_": f"rdmm.dynamics.{name}", "smoother": smoother, "integrator": integrator},
            "smoother": smoother,
            "integrator": integrator,
            "similarity": {"_target_": "rdmm.similarity.SSD"},
            "similarity_weight": 3.0,
        },
    }
    if affine:
        settings["affine"] = {"_target_": "networks.affine.AffineNet", "backbone": backbone, "shape": list(shape), "keypoints": 8}
    networks = randomize_weights(models.build_networks(settings), 0.02)
    models.save(path, networks, settings, {"step": 7, "score": 0.5})
    return networks


def test_a_model_file_gives_back_its_networks_to_the_bit(tmp_path):
    networks = write_small_model(tmp_path / "m.safetensors")
    again = models.load(str(tmp_path / "m.safetensors"))
    assert set(networks.state_dict()) == set(again.state_dict())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in networks.state_dict().items())
    assert not any(p.requires_grad for p in again.parameters())
    bytes_before = (tmp_path / "m.safetensors").read_bytes()
    write_small_model(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == bytes_before  # equal models are equal files


def test_learned_mode_is_the_network_applied_step_by_step():
    grid = GRIDS["2d"]
    net = randomize_weights(Predictor(SMOOTHER, TINY, grid.shape))
    problem = Problem(LDDMM(SMOOTHER, Integrator(steps=3)), SSD())
    pair = pair_of(grid)
    result = learned(Skip(), Deform(problem, NoOptimizer(), net), 2)(pair)
    with torch.no_grad():
        first = problem.dynamics.shoot(net(pair), pair.source)
        second = problem.dynamics.shoot(net(pair.with_initial(first)), pair.fixed)
    x = grid.identity(pair.fixed.data)
    assert torch.allclose(result.transform(x), first(second(x)), atol=1e-6)
    assert not result.history
    inside = x[..., 6:-6, 6:-6]
    assert float((result.inverse(result.transform(inside)) - inside).abs().max()) < 0.5 * min(grid.spacing)
    with pytest.raises(ConfigError, match="at least 1"):
        learned(Skip(), Deform(problem), 0)


def test_a_prediction_is_a_start_for_the_optimizer():
    """Learned + instance optimization: the energy falls from what the network predicts, and only the last step moves."""
    grid = GRIDS["2d"]
    net = randomize_weights(Predictor(SMOOTHER, TINY, grid.shape, weights=True), 0.02)
    problem = Problem(RDMM(SMOOTHER, Integrator(steps=3)), SSD(), similarity_weight=10.0)
    pair = pair_of(grid)
    predicted = learned(Skip(), Deform(problem, NoOptimizer(), net), 2)(pair)
    refined = learned(Skip(), Deform(problem, LBFGS([1.0], [5]), net), 2)(pair)
    assert refined.energy["total"] < predicted.energy["total"]
    assert len(refined.history) == 5
    x = grid.identity(pair.fixed.data)
    assert torch.equal(refined.before(x), predicted.before(x))


def test_a_chain_of_the_same_stages_shoots_batches():
    """A batch of pairs predicts what each pair does alone."""
    grid = GRIDS["2d"]
    net = randomize_weights(Predictor(SMOOTHER, TINY, grid.shape, weights=True))
    pairs = [pair_of(grid, s) for s in (0, 5)]
    both = Pair(*(Image(torch.cat([getattr(p, side).data for p in pairs]), grid) for side in ("fixed", "moving")))
    with torch.no_grad():
        whole, alone = net(both), [net(p) for p in pairs]
    for i, ic in enumerate(alone):
        assert torch.allclose(whole.momentum[i : i + 1], ic.momentum, atol=1e-5)
        assert torch.allclose(whole.weights[i : i + 1], ic.weights, atol=1e-5)
    assert Chain([Skip()])(both).transform == Identity()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Predictor(SMOOTHER, TINY, (4, 4)), "8 voxels"),
        (lambda: Predictor(SMOOTHER, TINY, (32, 32), reduction=3), "1, 2, 4 or 8"),
        (lambda: Predictor(SMOOTHER, TINY, (32, 32), scale=0), "scale must be > 0"),
        (lambda: AffineNet(TINY, (32, 32), keypoints=2), "more than 2 keypoints"),
        (lambda: Basic([4, 4]), "5 or more"),
        (lambda: Residual([4]), "2 or more"),
    ],
)
def test_wrong_networks_say_so(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_anisotropic_voxels_and_oblique_axes():
    """Keypoints and momenta live in domain units: a network runs on any grid, and its map is in the frame of that grid."""
    grid = oblique((20, 26, 14), (1.0, 1.0, 2.5))
    pair = pair_of(grid)
    net = randomize_weights(Predictor(SMOOTHER, TINY, (16, 16, 16)))
    with torch.no_grad():
        ic = net(pair)
    level = grid.scaled(16 / 26)
    assert ic.momentum.shape[2:] == tuple(-(-n // 2) for n in level.shape)


def test_networks_without_monai_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    for backbone in (Basic(), Residual()):
        with pytest.raises(ConfigError, match=r"pip install 'rdmm\[networks\]'"):
            backbone(2, 1, 1)
