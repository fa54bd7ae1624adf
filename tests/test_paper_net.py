"""The recipe of the RDMM paper: what experiment=paper_net holds, that it trains, and the affine network by regression."""

import pytest
import torch
from conftest import GRIDS, oblique
from test_networks import pair_of, randomize_weights

from networks.affine import AffineRegression
from networks.model import build_networks
from rdmm import ConfigError, Image, Pair
from rdmm.config.compose import compose
from rdmm.data.inputs import Inputs
from rdmm.spatial.transform import Affine, Dense, Identity
from train.losses import inverse_consistency
from train.plan import build_objective, plan_trainings


def test_the_papers_recipe_trains():
    small = [
        "shape=[24,24,24]",
        "backbone.features=[2,2,2,2,2]",
        "network.affine.features=[2,2]",
        "network.affine.steps=2",
        "integrator.rtol=1.0",
        "integrator.atol=1.0",
    ]
    affine, rdmm = plan_trainings(compose(["experiment=paper_net", *small], "train"), [])
    config = rdmm.config
    assert config["smoother"]["sigmas"] == [0.05, 0.1, 0.15, 0.2, 0.25]
    assert config["smoother"]["weights"] == [0.067, 0.133, 0.2, 0.267, 0.333]
    assert (config["integrator"]["library"], config["integrator"]["method"], config["integrator"]["adjoint"]) == (
        "torchdiffeq",
        "dopri5",
        True,
    )
    assert config["loss"]["consistency_unit"] == "domain" and config["trainer"]["both_directions"]
    assert config["network"]["steps"] == 2 and config["network"]["predictor"]["reduction"] == 2
    batch = Inputs(pair_of(oblique((24, 24, 24), (1.0, 1.0, 1.0))))
    for plan in (affine, rdmm):
        torch.manual_seed(0)
        networks = build_networks(plan.settings)
        objective = build_objective(plan, networks)
        values = []
        for _ in range(2):
            outcome = objective(batch, 0, 0, False)
            outcome.loss.backward()
            values.append(float(outcome.loss.detach()))
            with torch.no_grad():
                for p in objective.trained.parameters():
                    p -= 1e-3 * p.grad / (p.grad.norm() + 1e-12)
                    p.grad = None
        assert values[1] < values[0]
    assert "squeezed" not in outcome.terms


def test_inverse_consistency_in_the_papers_unit_is_that_of_unit_coordinates():
    grid = oblique((20, 20, 20), (2.0, 2.0, 2.0))
    pair = pair_of(grid)
    both = Pair(*(Image(torch.cat([i.data, i.data]), grid) for i in (pair.fixed, pair.moving)))
    u = 0.01 * torch.randn(2, 3, *grid.shape)
    voxel, domain = (float(inverse_consistency(Dense(u, grid), both, unit)) for unit in ("voxel", "domain"))
    assert domain == pytest.approx(voxel * grid.scaled(0.5).spacing[0] ** 2, rel=1e-5)
    assert float(inverse_consistency(Identity(), both, "domain")) == 0


def test_steps_of_the_regression_compose(grid):
    """Each step is that of one step for the moving image seen through the map so far; on any grid."""
    nets = [randomize_weights(AffineRegression(grid.shape, [3, 3], steps), 0.15) for steps in (1, 2)]
    pair = pair_of(grid)
    with torch.no_grad():
        first, second = nets[1].matrices(pair)
        again = nets[0].matrices(pair.with_initial(Affine(first)))[0]
    assert torch.allclose(first @ again, second, atol=1e-5) and not torch.allclose(first, second, atol=1e-4)
    result = nets[0](pair)
    x = torch.rand(1, grid.ndim, 9, dtype=torch.float64)
    assert torch.allclose(result.inverse(result.transform(x)), x, atol=1e-6)


def test_an_untrained_regression_changes_next_to_nothing():
    grid = GRIDS["2d"]
    with torch.no_grad():
        matrix = AffineRegression(grid.shape).matrices(pair_of(grid))[-1]
    assert torch.allclose(matrix[0], torch.eye(3), atol=0.02)
    with pytest.raises(ConfigError, match="steps >= 1"):
        AffineRegression(grid.shape, steps=0)
