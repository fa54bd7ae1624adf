"""What geodesics need on their grid: cubic sampling, fourth-order differences, momenta on other grids; and geodesics that are those of
their initial conditions, not of their grid."""

import math
from dataclasses import replace

import pytest
import torch

from rdmm import LDDMM, RDMM, SVF, DivergenceError, Grid, Image, InitialConditions, MultiGaussian
from rdmm.kernels import available
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.high_order import cubic, differences
from rdmm.spatial.high_order.resampling import resize_momentum

GRIDS = [Grid.unit((23, 17)), Grid((9, 12, 7), torch.diag(torch.tensor([1.0, 1.4, 2.0, 1.0])).double().numpy())]


def field(grid, channels=1, like=torch.float64):
    """A smooth function of the point, one for each channel."""
    x = grid.identity(torch.zeros(1, dtype=like))
    waves = [sum((1 + i + j) * x[:, j] for j in range(grid.ndim)) for i in range(channels)]
    return torch.stack([torch.sin(2 * w) for w in waves], 1)


def scattered(grid, count=200, beyond=0.2):
    extent = torch.tensor(grid.extent, dtype=torch.float64).view(1, -1, 1)
    unit = torch.rand(1, grid.ndim, count, generator=torch.manual_seed(1), dtype=torch.float64)
    return extent * (unit * (1 + 2 * beyond) - beyond)


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "anisotropic 3d"])
def test_cubic_sampling_is_exact_for_cubics(grid):
    """Two voxels from the walls on; and at every voxel it gives the voxel's own value."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    points = scattered(grid, beyond=-0.5)  # the middle of the grid
    points = points * 0.2 + 0.4 * torch.tensor(grid.extent).view(1, -1, 1)

    def polynomial(y):
        return torch.stack([y[:, i] ** 3 - y[:, 0] * y[:, -1] ** 2 + 0.5 * y[:, 1] for i in range(grid.ndim)], 1)

    assert torch.allclose(cubic.sample(polynomial(x), points, grid), polynomial(points), atol=1e-12)
    assert torch.allclose(cubic.sample(polynomial(x), x, grid), polynomial(x), atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 20), (12, 16, 14)])
def test_cubic_sampling_is_of_fourth_order(shape):
    points = scattered(Grid.unit(shape), beyond=-0.2)
    errors = []
    for k in (1, 2):
        grid = Grid.unit([k * (n - 1) + 1 for n in shape])
        exact = torch.sin(2 * (points[:, :1] + sum((2 + j) * points[:, 1 + j : 2 + j] for j in range(len(shape) - 1))))
        errors.append(float((cubic.sample(field(grid), points, grid) - exact).norm()))
    assert math.log2(errors[0] / errors[1]) > 3.7


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "anisotropic 3d"])
def test_cubic_sampling_compiled_and_by_torch(monkeypatch, grid):
    """Values and both gradients are the same, inside the grid, at its walls and beyond."""
    values, points = field(grid, 3).requires_grad_(), scattered(grid).requires_grad_()
    weights = torch.rand(1, 3, 200, generator=torch.manual_seed(2), dtype=torch.float64)
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(available, "has_numba", lambda: False)
        out = cubic.sample(values, points, grid)
        found.append((out, *torch.autograd.grad((weights * out).sum(), (values, points))))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-11)
    inside = ((points > 0) & (points < torch.tensor(grid.extent).view(1, -1, 1))).all(1)
    assert 20 < int(inside.sum()) < 180


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "anisotropic 3d"])
def test_slopes_of_cubic_sampling_are_finite_differences(grid):
    values, points = field(grid), scattered(grid, 40, beyond=-0.02).requires_grad_()
    (slopes,) = torch.autograd.grad(cubic.sample(values, points, grid).sum(), points)
    for axis in range(grid.ndim):
        step = torch.zeros_like(points.detach())
        step[:, axis] = 1e-6
        difference = (cubic.sample(values, points + step, grid) - cubic.sample(values, points - step, grid)) / 2e-6
        assert torch.allclose(difference[0, 0], slopes[0, axis], atol=1e-6)


def test_cubic_sampling_refuses_what_is_not_finite():
    grid = Grid.unit((8, 8))
    with pytest.raises(DivergenceError, match="not finite"):
        cubic.sample(torch.ones(1, 1, 8, 8), torch.full((1, 2, 3), math.nan), grid)


def test_without_kernels_a_point_that_is_not_finite_is_refused_or_nan(monkeypatch):
    """On the CPU it is an error; elsewhere, where nothing is read back, its value is NaN: neither is the value of an edge."""
    monkeypatch.setattr(available, "has_numba", lambda: False)
    grid, points = Grid.unit((8, 8)), torch.tensor([[[0.5, math.inf, -math.inf, math.nan], [0.5] * 4]])
    with pytest.raises(DivergenceError, match="not finite"):
        cubic.sample(torch.ones(1, 1, 8, 8), points, grid)
    monkeypatch.setattr(cubic, "is_on_host", lambda x: False)
    found = cubic.sample(torch.ones(1, 1, 8, 8), points, grid)[0, 0]
    assert found[0] == 1 and bool(found[1:].isnan().all())


@pytest.mark.parametrize("shape", [(16, 21), (9, 8, 12)])
def test_differences_are_of_fourth_order_and_have_their_transpose(shape):
    errors = []
    for k in (1, 2):
        grid = Grid.unit([k * (n - 1) + 1 for n in shape])
        x = grid.identity(torch.zeros(1, dtype=torch.float64))
        error = differences.partial(torch.sin(3 * x), 1, grid)[:, 1] - 3 * torch.cos(3 * x[:, 1])
        errors.append(float(error.narrow(2, 2 * k, x.shape[3] - 4 * k).abs().max()))
    assert math.log2(errors[0] / errors[1]) > 3.7
    a, b = (torch.rand(1, 2, *grid.shape, generator=torch.manual_seed(s), dtype=torch.float64) for s in (0, 1))
    for axis in range(len(shape)):
        there, back = (a * differences.partial(b, axis, grid)).sum(), (b * differences.partial_transpose(a, axis, grid)).sum()
        assert torch.allclose(there, back)


def window(shape):
    """1 in the middle, falling to 0 at the walls."""
    out = torch.ones(())
    for n in shape:
        out = out.unsqueeze(-1) * torch.sin(math.pi * torch.linspace(0, 1, n, dtype=torch.float64)) ** 2
    return out


@pytest.mark.parametrize("shape", [(12, 16), (8, 10, 9)])
def test_a_momentum_acts_alike_on_every_grid(shape):
    """What K m is does not depend on the grid, nor does the sum of a momentum at the walls; back on the first grid it is itself again."""
    coarse, fine = Grid.unit(shape), Grid.unit([2 * n - 1 for n in shape])
    m = torch.randn(1, len(shape), *shape, generator=torch.manual_seed(0), dtype=torch.float64)
    assert torch.allclose(m.sum() * coarse.cell, resize_momentum(m, fine.shape).sum() * fine.cell)
    m = m * window(shape)
    refined = resize_momentum(m, fine.shape)
    assert torch.allclose(resize_momentum(refined, shape), m, atol=1e-12)
    every_second = (slice(None), slice(None), *(slice(None, None, 2) for _ in shape))
    v, w = MultiGaussian([0.2], [1.0])(m, coarse), MultiGaussian([0.2], [1.0])(refined, fine)[every_second]
    assert float((v - w).norm() / v.norm()) < 5e-3


SMOOTHER = MultiGaussian([0.04, 0.08, 0.2], [0.2, 0.4, 0.4])


def resolved(grid, dynamics, strength):
    """Initial conditions whose velocity moves by about ``strength``, in waves that the grid holds well."""
    d = grid.ndim
    noise = torch.randn(1, d + 3, *grid.shape, generator=torch.manual_seed(3), dtype=torch.float64)
    m = gaussian(noise[:, :d] * window(grid.shape), 0.05, grid)
    m = m * (strength / SMOOTHER(m, grid).norm(dim=1).max())
    if not dynamics.has_preweights:
        return InitialConditions(m)
    squares = (12 * gaussian(noise[:, d:], 0.12, grid)).exp()
    return InitialConditions(m, (squares / squares.sum(1, keepdim=True)).sqrt())


@pytest.mark.parametrize("dynamics", [LDDMM(SMOOTHER), RDMM(SMOOTHER, weight_sigma=0.05)], ids=["lddmm", "rdmm"])
@pytest.mark.parametrize("shape", [(34, 30), (20, 24, 18)])
def test_a_result_is_that_of_its_geodesic_not_of_its_grid(dynamics, shape):
    """Shot again with a voxel and a step of half the size, the map is the same within a fiftieth of a voxel; with moving weights, whose
    transport is of second order in the step, within a thirtieth. (With linear sampling and second-order differences: a sixth.)"""
    grid = Grid.unit(shape)
    image = Image(torch.zeros(1, 1, *shape, dtype=torch.float64), grid)
    ic = resolved(grid, dynamics, 0.1)
    finer = replace(dynamics, integrator=replace(dynamics.integrator, steps=2 * dynamics.integrator.steps))
    with torch.no_grad():
        found = dynamics.shoot(ic, image).displacement
        again = finer.shoot(ic.resized([2 * n - 1 for n in shape]), image).displacement
    error = (found - again).norm(dim=1) / min(grid.spacing)
    assert float(found.norm(dim=1).max()) / min(grid.spacing) > 1.5
    assert float(error.square().mean().sqrt()) < (0.035 if dynamics.has_preweights else 0.02)


def test_a_stationary_flow_is_that_of_its_velocity():
    grid = Grid.unit((34, 30))
    image = Image(torch.zeros(1, 1, *grid.shape, dtype=torch.float64), grid)
    svf = SVF(SMOOTHER)
    ic = resolved(grid, svf, 0.1)
    with torch.no_grad():
        error = (svf.shoot(ic, image).displacement - svf.shoot(ic.resized((67, 59)), image).displacement).norm(dim=1)
    assert float(error.square().mean().sqrt()) / min(grid.spacing) < 0.05
