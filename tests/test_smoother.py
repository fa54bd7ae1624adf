import math

import numpy as np
import pytest
import torch
from conftest import bump, oblique

from rdmm import ConfigError, Grid, MultiGaussian
from rdmm.spatial import ops
from rdmm.spatial.gaussian import gaussian, shrink
from rdmm.stages.deform import warn_of_wrong_lengths

BOUNDARIES = ["zero", "periodic", "reflect"]


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_gaussian_of_a_gaussian(boundary):
    for grid in (Grid.unit((64, 80)), oblique((48, 40, 28), (1.0, 1.0, 1.6))):
        s, t, d = 0.06, 0.05, grid.ndim
        smoothed = gaussian(bump(grid, s), t, grid, boundary)
        expected = (s**2 / (s**2 + t**2)) ** (d / 2) * bump(grid, math.hypot(s, t))
        assert float((smoothed - expected).abs().max()) < 2e-4


def test_closed_form_to_rounding_far_from_walls():
    grid = Grid.unit((96, 96))
    smoothed = gaussian(bump(grid, 0.04), 0.03, grid, "zero")
    expected = 0.04**2 / (0.04**2 + 0.03**2) * bump(grid, 0.05)
    assert float((smoothed - expected).abs().max()) < 1e-7  # the bump itself is cut at the walls


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_semigroup(grid, boundary):
    f = bump(grid, 0.07)
    twice = gaussian(gaussian(f, 0.03, grid, boundary), 0.04, grid, boundary)
    assert float((twice - gaussian(f, 0.05, grid, boundary)).abs().max()) < 1e-3 * float(f.max())


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_self_adjoint(grid, boundary):
    smoother = MultiGaussian([0.05, 0.2], [0.3, 0.7], boundary)
    a, b = torch.randn(2, 1, grid.ndim, *grid.shape, dtype=torch.float64)
    assert float(ops.inner(a, smoother(b, grid), grid)) == pytest.approx(float(ops.inner(smoother(a, grid), b, grid)), rel=1e-10)


def test_positive_definite(grid):
    m = torch.randn(1, grid.ndim, *grid.shape, dtype=torch.float64)
    assert float(ops.inner(m, MultiGaussian([0.05, 0.2], [0.3, 0.7])(m, grid), grid)) > 0


WELL_SAMPLED = MultiGaussian([0.12, 0.2, 0.3], [0.2, 0.3, 0.5])  # on every grid: over 1.5 voxels


def test_one_filter_is_the_sum_of_gaussians(grid):
    m = torch.randn(1, grid.ndim, *grid.shape, dtype=torch.float64)
    smoother = WELL_SAMPLED
    expected = sum(w * gaussian(m, s, grid, "zero") for w, s in zip(smoother.weights, smoother.sigmas, strict=True))
    assert torch.allclose(smoother(m, grid), expected, atol=1e-6)


def test_constant_regional_weights_are_the_multi_gaussian(grid):
    smoother = WELL_SAMPLED
    m = torch.randn(1, grid.ndim, *grid.shape, dtype=torch.float64)
    w = torch.tensor(smoother.weights, dtype=torch.float64).sqrt().view(1, 3, *(1,) * grid.ndim).expand(1, 3, *grid.shape)
    v = sum(w[:, i : i + 1] * nu for i, nu in enumerate(smoother.parts(m, w, grid).unbind(1)))
    assert torch.allclose(v, smoother(m, grid), atol=1e-6)


def test_constants_stay_constant_where_the_boundary_reflects(grid):
    one = torch.ones(1, 1, *grid.shape, dtype=torch.float64)
    assert torch.allclose(gaussian(one, 0.1, grid, "reflect"), one)
    assert torch.allclose(gaussian(one, 0.1, grid, "periodic"), one)
    assert float(gaussian(one, 0.1, grid, "zero").min()) < 0.5


def test_zero_boundary_does_not_wrap_around():
    grid = Grid.unit((50, 50))
    f = torch.zeros(1, 1, 50, 50, dtype=torch.float64)
    f[..., 1, 25] = 1
    assert float(gaussian(f, 0.05, grid, "zero")[..., 40:, :].abs().max()) < 1e-9
    assert float(gaussian(f, 0.05, grid, "periodic")[..., 45:, :].abs().max()) > 1e-4


def test_band_of_a_wide_gaussian_is_small():
    from rdmm.spatial.gaussian import _waves

    sizes = [_waves(n, 1 / (n - 1), 0.1, 0.1, "zero", torch.float32, torch.device("cpu"))[0].shape[1] for n in (64, 256)]
    assert sizes[0] < 64
    assert abs(sizes[0] - sizes[1]) <= 2  # so the cost is linear in voxels


def test_millimeters():
    grid = oblique((40, 36), (2.0, 2.0))
    m = torch.randn(1, 2, *grid.shape, dtype=torch.float64)
    in_mm = MultiGaussian([8.0], [1.0], unit="mm")
    assert torch.allclose(in_mm(m, grid), MultiGaussian([8.0 / grid.length], [1.0])(m, grid))


def test_preconditioner_and_its_inverse(grid):
    smoother = MultiGaussian([0.08, 0.2], [0.5, 0.5])
    z = smoother(torch.randn(1, grid.ndim, *grid.shape, dtype=torch.float64), grid)
    z = gaussian(z, 0.1, grid)
    there = smoother.precondition(z, grid)
    assert torch.allclose(smoother.precondition(there, grid, inverse=True), z, atol=1e-6 * float(z.abs().max()))


def test_preconditioned_momentum_has_the_energy_of_z():
    grid = Grid.unit((64, 64))
    smoother = MultiGaussian([0.05], [1.0], "periodic")
    z = gaussian(bump(grid, 0.08), 0.05, grid).expand(1, 2, -1, -1)
    m = smoother.precondition(z, grid, delta=1e-6)
    assert float(ops.inner(m, smoother(m, grid), grid)) == pytest.approx(float(ops.inner(z, z, grid)), rel=1e-3)


def test_shrinking_leaves_axes_that_are_not_reduced():
    grid = Grid((32, 32, 8), torch.diag(torch.tensor([1.0, 1, 4, 1])).numpy())
    x = torch.randn(1, 1, *grid.shape, dtype=torch.float64)
    small = shrink(x, grid, grid.scaled(0.5))
    assert small.shape[2:] == grid.scaled(0.5).shape and small.shape[4] == 8
    for z in range(8):
        alone = torch.zeros_like(x)
        alone[..., z] = x[..., z]
        assert torch.allclose(shrink(alone, grid, grid.scaled(0.5))[..., z], small[..., z])


@pytest.mark.parametrize("shape", [(30, 23), (21, 18, 15)])
def test_shrinking_is_a_blur_and_linear_interpolation(shape):
    """On voxels of width h to those of width k: a Gaussian whose variance is (k^2 - h^2) / 4."""
    grid = Grid(shape, torch.eye(len(shape) + 1).numpy())
    coarse = grid.resized([(n + 1) // 3 for n in shape])
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    for axis, (h, k) in enumerate(zip(grid.spacing, coarse.spacing, strict=True), 2):
        one = grid.resized([m if axis == a else n for a, (n, m) in enumerate(zip(shape, coarse.shape, strict=True), 2)])
        waves = torch.fft.fft(torch.cat([x, x.flip(axis)], axis), dim=axis)  # mirrored at the edges of the voxels
        frequency = torch.fft.fftfreq(2 * x.shape[axis], h, dtype=torch.float64).view(-1, *(1,) * (x.ndim - 1 - axis))
        blurred = torch.fft.ifft(waves * torch.exp(-(math.pi**2) * (k**2 - h**2) / 2 * frequency**2), dim=axis).real
        expected = ops.resize(blurred.narrow(axis, 0, x.shape[axis]), one.shape)
        assert torch.allclose(shrink(x, grid, one), expected, atol=1e-9)
    assert torch.allclose(shrink(torch.ones_like(x), grid, coarse), torch.ones(2, 3, *coarse.shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("sigmas", "weights", "boundary"),
    [
        ([0.1, 0.05], [0.5, 0.5], "zero"),
        ([0.1], [0.5, 0.5], "zero"),
        ([0.1], [-1.0], "zero"),
        ([0.1], [0.7], "zero"),
        ([0.1], [1.0], "zer"),
        ([], [], "zero"),
    ],
)
def test_bad_smoothers(sigmas, weights, boundary):
    with pytest.raises(ConfigError):
        MultiGaussian(sigmas, weights, boundary)


def test_shrinking_does_not_depend_on_threads():
    """Single products of matrices do, for one in twenty of such shapes with two threads, and one in eight with four."""
    generator = torch.Generator().manual_seed(0)
    for d in (2, 3) * 30:
        shape = torch.randint(8, 60 if d == 3 else 300, (d,), generator=generator).tolist()
        grid, x = Grid.unit(shape), torch.rand(1, 1, *shape, generator=generator)
        coarse, found = grid.scaled(float(0.1 + 0.8 * torch.rand(1, generator=generator))), []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(shrink(x, grid, coarse))
        torch.set_num_threads(1)
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_gaussians_of_a_wrong_unit_are_said(caplog):
    grid = Grid((20, 20), np.eye(3))
    warn_of_wrong_lengths(MultiGaussian([0.1, 0.2], [0.5, 0.5], unit="mm"), grid)
    assert (
        "widest Gaussian of the smoother (0.2 mm) is narrower than half a voxel (1 mm)" in caplog.text and "in millimeters" in caplog.text
    )
    caplog.clear()
    warn_of_wrong_lengths(MultiGaussian([5.0], [1.0]), grid)
    assert "narrowest Gaussian of the smoother (95 mm) is wider than the image (19 mm)" in caplog.text and "longest edge" in caplog.text
    caplog.clear()
    warn_of_wrong_lengths(MultiGaussian([0.01, 0.2], [0.5, 0.5]), grid)
    warn_of_wrong_lengths(MultiGaussian([0.2, 5.0], [0.5, 0.5]), grid)
    assert not caplog.text
