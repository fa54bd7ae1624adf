import pytest
import torch
from conftest import oblique

from rdmm import DivergenceError, Grid
from rdmm.spatial import ops


def run_in_torch(monkeypatch, *arguments, **keywords):
    with monkeypatch.context() as m:
        m.setattr(ops, "has_kernels", lambda x: False)
        return ops.sample(*arguments, **keywords)


@pytest.mark.parametrize("shape", [(7, 9), (7, 8, 9)])
@pytest.mark.parametrize("points", [(5,), None])
def test_compiled_sampling_is_grid_sample(monkeypatch, shape, points):
    grid = Grid.unit(shape)
    values = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(1, len(shape), *(points or (4,) * len(shape)), dtype=torch.float64) * 1.4 - 0.2).requires_grad_()
    weight = torch.randn(2, 3, *target.shape[2:], dtype=torch.float64)
    results = []
    for f in (ops.sample, lambda *a: run_in_torch(monkeypatch, *a)):
        out = f(values, target, grid)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (values, target))))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_gradient_at_a_voxel_is_that_of_both_sides():
    grid = Grid.unit((9, 8, 7))
    values = torch.randn(1, 1, *grid.shape, dtype=torch.float64)
    points = grid.identity(values)
    points = (points * torch.tensor(grid.shape).sub(1).view(1, 3, 1, 1, 1)).round() / torch.tensor(grid.shape).sub(1).view(1, 3, 1, 1, 1)
    points.requires_grad_()
    (gradient,) = torch.autograd.grad(ops.sample(values, points, grid).sum(), points)
    for axis in range(3):
        inner = (0, slice(1, -1), slice(1, -1), slice(1, -1))
        assert torch.allclose(gradient[:, axis][inner], ops.partial(values, axis, grid)[:, 0][inner])


def test_sampling_does_not_depend_on_threads():
    grid = Grid.unit((20, 21, 22))
    values = torch.randn(1, 3, *grid.shape, requires_grad=True)
    points = grid.identity(values) + 0.03 * torch.randn(1, 3, *grid.shape)
    gradients = []
    import numba

    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        numba.set_num_threads(threads)
        gradients.append(torch.autograd.grad(ops.sample(values, points, grid).square().sum(), values)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("use_compiled", [True, False])
def test_nan_points_are_an_error_not_a_crash(monkeypatch, use_compiled):
    grid = Grid.unit((6, 6))
    points = grid.identity(torch.zeros(1))
    points[0, 0, 2, 2] = float("nan")
    f = ops.sample if use_compiled else lambda *a: run_in_torch(monkeypatch, *a)
    with pytest.raises(DivergenceError, match="not finite"):
        f(torch.zeros(1, 1, 6, 6), points, grid)


def test_partial_of_a_linear_function_is_exact(grid):
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    for axis in range(grid.ndim):
        assert torch.allclose(ops.partial(3 * x[:, axis], axis, grid), torch.full(grid.shape, 3.0, dtype=torch.float64))


def test_partial_is_second_order():
    errors = []
    for n in (33, 65):
        grid = Grid.unit((n, n))
        x = grid.identity(torch.zeros(1, dtype=torch.float64))[:, 0]
        errors.append(float((ops.partial(torch.sin(5 * x), 0, grid) - 5 * torch.cos(5 * x))[..., 1:-1, :].abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_partial_gradient_is_its_transpose(grid):
    f = torch.randn(1, 2, *grid.shape, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(f)
    (transpose,) = torch.autograd.grad((ops.partial(f, 1, grid) * g).sum(), f)
    assert float((transpose * f).sum()) == pytest.approx(float((ops.partial(f, 1, grid) * g).sum()))


def test_barrier_is_zero_for_gentle_maps_and_its_gradient_right(monkeypatch, grid):
    gentle = 0.04 * min(grid.spacing) * torch.randn(1, grid.ndim, *grid.shape, dtype=torch.float64)
    assert float(ops.barrier(gentle, grid, 0.1)) == 0
    rough = (20 * gentle).requires_grad_()
    results = []
    for compiled in (True, False):
        with monkeypatch.context() as m:
            m.setattr(ops, "has_kernels", lambda x, compiled=compiled: compiled)
            value = ops.barrier(rough, grid, 0.1)
            results.append((value, torch.autograd.grad(value.sum(), rough)[0]))
    assert float(results[0][0]) > 1e-4
    assert torch.allclose(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], atol=1e-12)


@pytest.mark.parametrize("batches", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_constant_values_have_the_same_slopes(grid, batches):
    """Where only the points have a gradient, slopes are computed with the values. Points lie inside, on voxels, and outside."""
    n, m = batches
    values = torch.rand(n, 1, *grid.shape, dtype=torch.float64)
    points = grid.identity(values) + 0.2 * torch.randn(m, grid.ndim, *grid.shape, dtype=torch.float64)
    points[..., 0] = grid.identity(values)[..., 0]
    points.requires_grad_()
    results = []
    for has_gradient in (False, True):
        found = ops.sample(values.clone().requires_grad_(has_gradient), points, grid)
        results.append((found, torch.autograd.grad(found.square().sum(), points)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-12, atol=1e-12)


def test_what_has_no_second_derivative_says_so(grid):
    values, points = torch.rand(1, 1, *grid.shape), (grid.identity(torch.rand(1)) * 0.9).requires_grad_()
    (slope,) = torch.autograd.grad(ops.sample(values, points, grid).square().sum(), points, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_batches_that_do_not_fit_are_an_error(grid):
    with pytest.raises(ValueError, match="a batch of 2 images at the points of 3"):
        ops.sample(torch.rand(2, 1, *grid.shape), torch.rand(3, grid.ndim, 5), grid)
    empty = torch.empty(1, grid.ndim, *(0,) * grid.ndim)
    assert ops.sample(torch.rand(1, 1, *grid.shape), empty, grid).shape == (1, 1, *(0,) * grid.ndim)


def test_zero_outside_falls_off_within_a_voxel(monkeypatch, grid):
    """The compiled kernel and grid_sample agree inside, in the voxel beyond the edge, and far outside."""
    values = torch.rand(2, 3, *grid.shape, dtype=torch.float64)
    points = grid.identity(values) * 1.4 - 0.2
    found = []
    for compiled in (True, False):
        monkeypatch.setattr(ops, "has_kernels", lambda x, compiled=compiled: compiled)
        found.append(ops.sample(values, points, grid, outside="zero"))
    assert torch.allclose(*found, atol=1e-12)
    assert (found[0] == 0).any()
    assert (found[0] > 0).any()


@pytest.mark.parametrize("bend", [0.05, 0.1, 0.3, 0.6])
def test_the_compiled_barrier_counts_every_simplex(monkeypatch, grid, bend):
    """Whether few cells are squeezed or most, and for a floor that all maps are below."""
    noise = torch.rand(1, grid.ndim, *grid.shape, dtype=torch.float64, generator=torch.manual_seed(1)) - 0.5
    u = bend * noise * torch.tensor(grid.spacing).view(1, -1, *(1,) * grid.ndim)
    values: list[list[float]] = []
    for compiled in (True, False):
        monkeypatch.setattr(ops, "has_kernels", lambda x, compiled=compiled: compiled)
        values += [[float(ops.barrier(u, grid, floor)) for floor in (0.2, 1.5)]]
    assert values[0] == pytest.approx(values[1], rel=1e-9, abs=0)


def test_determinant_of_an_affine_map():
    grid = oblique((9, 8, 7), (1, 1, 2.0))
    matrix = torch.tensor([[1.1, 0.2, 0], [0, 0.9, 0.1], [0.1, 0, 1.3]], dtype=torch.float64)
    x = grid.identity(matrix)
    u = torch.einsum("ij,bj...->bi...", matrix, x) - x
    assert torch.allclose(ops.jacobian_determinant(u, grid), torch.linalg.det(matrix))


def test_inner_product_does_not_depend_on_resolution():
    values = []
    for n in (33, 129):
        grid = Grid.unit((n, n))
        x = grid.identity(torch.zeros(1, dtype=torch.float64))
        f = torch.exp(-((x - 0.5) ** 2).sum(1, keepdim=True) / 0.02)
        values.append(float(ops.inner(f, f, grid)))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
