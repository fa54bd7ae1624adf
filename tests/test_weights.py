import pytest
import torch
from conftest import preweights

from rdmm import ConfigError, MultiGaussian
from rdmm.regularizer.penalty import NoPenalty, WeightPenalty, deviation, omt, total_variation
from rdmm.regularizer.weights import by_region, constant, local_sigma, normalize, parameters, region_rows

SMOOTHER = MultiGaussian([0.05, 0.1, 0.2, 0.4], [0.1, 0.2, 0.3, 0.4])


def test_normalize_is_on_the_sphere_and_reaches_zero(grid):
    p = torch.randn(1, 4, *grid.shape, dtype=torch.float64)
    p[:, 0] = 0
    h = normalize(p)
    assert torch.allclose(h.square().sum(1), torch.ones(1, dtype=torch.float64))
    assert float(h.min()) == 0
    assert torch.allclose(normalize(parameters(h)), h)


def test_gradient_steps_drive_weights_to_zero_where_the_price_says_so(grid):
    """Descent on a price of the small Gaussians drives them to 0, and nothing becomes NaN."""
    p = parameters(constant([0.25] * 4, grid, torch.zeros(1, dtype=torch.float64))).requires_grad_()
    optimizer = torch.optim.SGD([p], 0.3 * p[0, 0].numel())
    for _ in range(300):
        optimizer.zero_grad()
        omt(normalize(p), SMOOTHER, grid).sum().backward()
        optimizer.step()
    h = normalize(p)
    assert float(h[:, 0].max()) < 5e-3
    assert float(h[:, 3].min()) > 0.99


def test_omt_prices_the_narrowest_at_one_and_the_widest_at_zero(grid):
    like = torch.zeros(1, dtype=torch.float64)
    for squares, price in (([1.0, 0, 0, 0], 1.0), ([0, 0, 0, 1.0], 0.0), ([0, 1.0, 0, 0], 2 / 3)):
        assert float(omt(constant(squares, grid, like), SMOOTHER, grid)) == pytest.approx(price)


def test_range_is_zero_at_the_predefined_weights(grid):
    w0 = constant(SMOOTHER.weights, grid, torch.zeros(1, dtype=torch.float64))
    assert float(deviation(w0, SMOOTHER, grid)) == pytest.approx(0)
    assert float(deviation(preweights(grid), SMOOTHER, grid)) > 0
    assert float(total_variation(w0, grid)) == pytest.approx(0, abs=1e-12)


def test_schedule():
    penalty = WeightPenalty(decay=10.0)
    assert penalty.schedule(0) == pytest.approx(10 / 11)
    assert penalty.schedule(1000) < 1e-20
    assert all(penalty.schedule(t) > penalty.schedule(t + 1) for t in range(50))
    with pytest.raises(ConfigError):
        WeightPenalty(range=-1.0)


def test_penalty_goes_from_range_to_omt(grid):
    h, w0 = preweights(grid), constant(SMOOTHER.weights, grid, torch.zeros(1, dtype=torch.float64))
    penalty = WeightPenalty(10.0, 1.0)
    late = penalty(h, 0.0, SMOOTHER, grid, 500)
    assert float(late) == pytest.approx(float(omt(h, SMOOTHER, grid)), rel=1e-6)
    assert float(penalty(w0, 0.0, SMOOTHER, grid, 0)) < float(penalty(h, 0.0, SMOOTHER, grid, 0))
    assert float(NoPenalty()(h, 0.0, SMOOTHER, grid, 3)) == 0


def test_local_sigma(grid):
    like = torch.zeros(1, dtype=torch.float64)
    assert torch.allclose(local_sigma(constant([0, 0, 1.0, 0], grid, like), SMOOTHER.sigmas), torch.tensor(0.2, dtype=torch.float64))


def test_by_region():
    labels = torch.tensor([[0, 1], [2, 1]])[None, None]
    squares = by_region(labels, {1: [0.5, 0.5], 2: [1.0, 0.0]}, [0.0, 1.0])
    assert squares[0, :, 0, 0].tolist() == [0, 1]
    assert squares[0, :, 0, 1].tolist() == [0.5, 0.5]
    assert squares[0, :, 1, 0].tolist() == [1, 0]
    for bad in ({1: [0.5, 0.4]}, {1: [-0.5, 1.5]}, {1: [1.0]}):
        with pytest.raises(ConfigError, match="sum to 1"):
            region_rows(bad, 2, "initializer.weights")
