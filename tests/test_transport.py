"""Transport between densities on grids: closed forms, symmetry, gradients, and the solver against a dense one."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from rdmm import ConfigError, DivergenceError, Grid, Image, InputError
from rdmm.similarity import GridSinkhorn
from rdmm.transport import softmin as convolution
from rdmm.transport.softmin import log_convolve


def gaussian_density(grid, mean, deviation, mass=1.0, dtype=torch.float64):
    x = grid.identity(torch.zeros(1, dtype=dtype))
    exponent = sum(((x[:, i] - mean[i]) / deviation[i]) ** 2 for i in range(grid.ndim))
    a = torch.exp(-0.5 * exponent)
    return (mass * a / a.sum())[None]


def rough(grid, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 1, *grid.shape, generator=generator, dtype=dtype) ** 3


@pytest.fixture(params=["2d", "3d"])
def small(request):
    if request.param == "2d":
        return Grid((9, 7), np.diag([1.0, 1.3, 1]))
    return Grid((6, 5, 7), np.diag([1.0, 1.5, 0.8, 1]))


def dense_divergence(a, b, grid, blur, reach):
    """The definition, by a dense cost matrix and two thousand iterations."""
    x = grid.identity(a)[0].flatten(1).T
    cost, eps = 0.5 * torch.cdist(x, x) ** 2, blur**2
    damping = 1.0 if reach is None else reach**2 / (reach**2 + eps)

    def value(a, b):
        a, b = a.flatten(), b.flatten()
        f, g = torch.zeros_like(a), torch.zeros_like(b)
        for _ in range(2000):
            f = -damping * eps * torch.logsumexp(b.log() + (g - cost) / eps, 1)
            g = -damping * eps * torch.logsumexp(a.log() + (f - cost.T) / eps, 1)
        plan = torch.exp((f[:, None] + g[None] - cost) / eps) * a[:, None] * b[None]

        def kl(p, q):
            return (p * (p / q).log() - p + q).sum()

        total = (plan * cost).sum() + eps * kl(plan, a[:, None] * b[None])
        if reach is not None:
            total = total + reach**2 * (kl(plan.sum(1), a) + kl(plan.sum(0), b))
        return total

    mass = 0.5 * eps * (a.sum() - b.sum()) ** 2
    return float(value(a, b) - 0.5 * value(a, a) - 0.5 * value(b, b) + mass)


@pytest.mark.parametrize("reach", [None, 0.4])
def test_divergence_by_its_definition(small, reach):
    a, b = rough(small, 1), rough(small, 2)
    a, b = a / a.sum(), b / b.sum()
    if reach is not None:
        a = 1.7 * a
    found = GridSinkhorn(0.2, reach, tolerance=1e-9, iterations=2000)(Image(a, small), Image(b, small))
    assert float(found) == pytest.approx(dense_divergence(a, b, small, 0.2, reach), rel=1e-6)


@pytest.mark.parametrize("alpha", [4.0, 1.0, 0.07])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_convolution_by_its_definition(alpha, dtype):
    g = 30 * torch.randn(2, 21, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g[:, 4:17] = convolution.LOG_ZERO
    expected = g
    for axis in range(1, 4):
        d = torch.arange(g.shape[axis], dtype=torch.float64)
        lines = expected.movedim(axis, -1).unsqueeze(-2) - 0.5 * alpha * (d[:, None] - d) ** 2
        expected = torch.logsumexp(lines, -1).movedim(-1, axis)
    found = log_convolve(g.to(dtype, copy=True), [alpha] * 3)
    assert torch.allclose(found.double(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-5)


def test_compiled_and_torch_log_convolutions_agree(monkeypatch):
    g = 20 * torch.randn(1, 40, 30, 70, generator=torch.Generator().manual_seed(0))
    compiled = log_convolve(g.clone(), [0.8, 1.0, 0.3])
    monkeypatch.setattr(convolution, "has_numba", lambda: False)
    assert torch.allclose(compiled, log_convolve(g, [0.8, 1.0, 0.3]), rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("shape", [(60, 50), (30, 26, 28)])
def test_a_translation_costs_half_its_square(shape):
    grid, h = Grid.unit(shape), 1 / (shape[0] - 1)
    steps = (6, -5, 4)[: len(shape)]
    a = gaussian_density(grid, [0.45, 0.55, 0.45], [0.06] * 3)
    b = torch.roll(a, steps, dims=tuple(range(2, 2 + len(shape))))
    v = [s / (n - 1) for s, n in zip(steps, shape, strict=True)]
    found = GridSinkhorn(h, tolerance=1e-4)(Image(a, grid), Image(b, grid))
    assert float(found) == pytest.approx(sum(x * x for x in v) / 2, rel=2e-3)


def gaussians_by_quadratics(ma, sa, mb, sb, mass, eps, rho):
    """W of two Gaussians with diagonal covariances: the potentials are quadratic (Janati et al., NeurIPS 2020), and Sinkhorn's
    iteration is one of their coefficients. f / eps = c + sum_i (l_i x_i - q_i x_i^2 / 2)."""
    damping = 1.0 if rho is None else rho / (rho + eps)

    def softmin(g, m, s, total):
        c, linear, square = math.log(total) + g[0], [], []
        for (li, qi), mi, si in zip(g[1], m, s, strict=True):
            # log of the integral of N(y; mi, si^2) exp(li y - qi y^2 / 2 - (x - y)^2 / (2 eps)) over y
            curvature = 1 / si**2 + qi + 1 / eps
            slope = mi / si**2 + li
            c += slope**2 / (2 * curvature) - mi**2 / (2 * si**2) - 0.5 * math.log(curvature * si**2)
            linear.append(slope / (eps * curvature))
            square.append(1 / eps - 1 / (eps**2 * curvature))
        return -damping * c, [(-damping * x, -damping * q) for x, q in zip(linear, square, strict=True)]

    f = g = (0.0, [(0.0, 0.0)] * len(ma))
    for _ in range(20000):
        f = softmin(g, mb, sb, mass[1])
        g = softmin(f, ma, sa, mass[0])
    if rho is None:
        return eps * (_mean(f, ma, sa) + _mean(g, mb, sb))

    def plan_mass(f, m, s, total):  # |pi| = <a, e^(-f eps / rho)>
        out = math.log(total) - f[0] * eps / rho
        for (li, qi), mi, si in zip(f[1], m, s, strict=True):
            li, qi = -li * eps / rho, -qi * eps / rho
            curvature, slope = 1 / si**2 + qi, mi / si**2 + li
            out += slope**2 / (2 * curvature) - mi**2 / (2 * si**2) - 0.5 * math.log(curvature * si**2)
        return math.exp(out)

    return rho * sum(mass) + eps * mass[0] * mass[1] - (2 * rho + eps) * plan_mass(f, ma, sa, mass[0])


def _mean(f, m, s):
    return f[0] + sum(li * mi - qi * (mi**2 + si**2) / 2 for (li, qi), mi, si in zip(f[1], m, s, strict=True))


@pytest.mark.parametrize("reach", [None, 0.3])
@pytest.mark.parametrize("d", [2, 3])
def test_gaussians_in_closed_form(d, reach):
    grid = Grid.unit((48,) * d)
    ma, sa, mb, sb = (x[:d] for x in ([0.42, 0.5, 0.55], [0.06, 0.08, 0.07], [0.55, 0.45, 0.5], [0.09, 0.06, 0.07]))
    mass, eps, rho = (1.0, 1.0) if reach is None else (1.0, 1.4), 0.08**2, None if reach is None else reach**2
    a, b = gaussian_density(grid, ma, sa, mass[0]), gaussian_density(grid, mb, sb, mass[1])
    w = [
        gaussians_by_quadratics(*p, *q, m, eps, rho)
        for p, q, m in (((ma, sa), (mb, sb), mass), ((ma, sa), (ma, sa), (mass[0],) * 2), ((mb, sb), (mb, sb), (mass[1],) * 2))
    ]
    expected = w[0] - 0.5 * (w[1] + w[2]) + 0.5 * eps * (mass[0] - mass[1]) ** 2
    found = GridSinkhorn(0.08, reach, tolerance=1e-7, iterations=1000)(Image(a, grid), Image(b, grid))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_balanced_gaussians_tend_to_the_bures_distance():
    grid = Grid.unit((80, 80))
    a, b = gaussian_density(grid, [0.4, 0.5], [0.05, 0.08]), gaussian_density(grid, [0.55, 0.5], [0.08, 0.08])
    found = GridSinkhorn(1 / 79, tolerance=1e-3)(Image(a, grid), Image(b, grid))
    assert float(found) == pytest.approx((0.15**2 + 0.03**2) / 2, rel=5e-3)


def test_two_diracs_unbalanced():
    grid, blur, reach = Grid.unit((17, 17)), 0.1, 0.5
    eps, rho = blur**2, reach**2
    a, b = torch.zeros(2, 1, 1, 17, 17, dtype=torch.float64)
    a[..., 4, 8], b[..., 12, 10] = 1.5, 0.8
    cost = ((8 / 16) ** 2 + (2 / 16) ** 2) / 2

    def w(m, n, c):
        plan = (m * n) ** ((eps + rho) / (eps + 2 * rho)) * math.exp(-c / (eps + 2 * rho))
        return rho * (m + n) + eps * m * n - (2 * rho + eps) * plan

    expected = w(1.5, 0.8, cost) - 0.5 * w(1.5, 1.5, 0) - 0.5 * w(0.8, 0.8, 0) + 0.5 * eps * 0.7**2
    found = GridSinkhorn(blur, reach, tolerance=1e-10)(Image(a, grid), Image(b, grid))
    assert float(found) == pytest.approx(expected, rel=1e-8)


def test_one_dimension_is_sorting():
    """Of densities that differ along one axis: the squared difference of their quantile functions."""
    grid = Grid((128, 8), np.diag([1.0, 1.0, 1]))
    x = torch.linspace(0, 1, 128, dtype=torch.float64)
    a, b = torch.exp(-((x - 0.3) ** 2) / 0.01) + 0.5 * torch.exp(-((x - 0.7) ** 2) / 0.004), torch.exp(-((x - 0.55) ** 2) / 0.02)
    a, b = a / a.sum(), b / b.sum()
    levels = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    quantiles = [np.interp(levels, c.cumsum(0) - c / 2, x) for c in (a, b)]
    expected = float(((quantiles[0] - quantiles[1]) ** 2).mean() / 2)
    images = [Image(c.view(1, 1, -1, 1).expand(1, 1, 128, 8).contiguous(), grid) for c in (a, b)]
    assert float(GridSinkhorn(1 / 127, tolerance=1e-4)(*images)) == pytest.approx(expected, rel=1e-2)


def test_small_problems_are_an_assignment():
    grid, generator = Grid.unit((33, 33)), np.random.default_rng(0)
    points = [generator.choice(33 * 33, 12, replace=False) for _ in range(2)]
    images = []
    for p in points:
        image = torch.zeros(33 * 33, dtype=torch.float64)
        image[torch.as_tensor(p)] = 1
        images.append(Image(image.view(1, 1, 33, 33), grid))
    x, y = (np.stack(np.unravel_index(p, (33, 33)), 1) / 32 for p in points)
    cost = 0.5 * ((x[:, None] - y[None]) ** 2).sum(-1)
    expected = cost[linear_sum_assignment(cost)].mean()
    assert float(GridSinkhorn(0.02, tolerance=1e-3, iterations=2000)(*images)) == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("reach", [None, 0.2])
def test_zero_only_where_equal_and_symmetric(small, reach):
    similarity = GridSinkhorn(0.15, reach, tolerance=1e-8, iterations=1000)
    a, b = Image(rough(small, 1), small), Image(rough(small, 2), small)
    there, back = float(similarity(a, b)), float(similarity(b, a))
    assert there > 1e-5
    assert back == pytest.approx(there, rel=1e-5)
    assert abs(float(similarity(a, a))) < 1e-9


@pytest.mark.parametrize(("reach", "normalise"), [(None, False), (0.3, True), (0.3, False)])
def test_gradients_are_those_of_finite_differences(small, reach, normalise):
    similarity = GridSinkhorn(0.15, reach, normalise=normalise, tolerance=1e-11, iterations=3000)
    a, b, direction = rough(small, 1), rough(small, 2), torch.randn(1, 1, *small.shape, dtype=torch.float64)
    if reach is not None and not normalise:
        a, b = a / a.sum(), 1.3 * b / b.sum()
    a[0, 0, 0], b[0, 0, 1] = 0, 0
    for first in (True, False):
        x = (a if first else b).clone().requires_grad_()

        def value(x, first=first):
            return similarity(*(Image(c, small) for c in ((x, b) if first else (a, x))))

        (gradient,) = torch.autograd.grad(value(x).sum(), x)
        step = 1e-5
        inside = direction * x.detach()
        numeric = float((value(x.detach() + step * inside) - value(x.detach() - step * inside)) / (2 * step))
        assert float((gradient * inside).sum()) == pytest.approx(numeric, rel=1e-5)
        away = torch.where(x.detach() > 0, 0, direction.abs() * x.detach().mean())  # mass appears where there is none: one-sided
        numeric = float((value(x.detach() + step * away) - value(x.detach())) / step)
        assert float((gradient * away).sum()) == pytest.approx(numeric, rel=1e-2)


@pytest.mark.parametrize("reach", [None, 0.2])
def test_float32_is_close_to_float64(reach):
    grid = Grid.unit((40, 36, 44))
    a, b = gaussian_density(grid, [0.35] * 3, [0.08] * 3), gaussian_density(grid, [0.6] * 3, [0.1] * 3)
    b[b < 1e-5] = 0
    results = []
    a, b = a / a.sum(), b / b.sum()
    for dtype in (torch.float32, torch.float64):
        x = a.to(dtype, copy=True).requires_grad_()
        value = GridSinkhorn(1 / 43, reach, tolerance=1e-3)(Image(x, grid), Image(b.to(dtype), grid))
        results.append((float(value.detach()), torch.autograd.grad(value, x)[0].double()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)
    weighted = [g * a / a.sum() for _, g in results]
    assert float((weighted[0] - weighted[1]).abs().sum() / weighted[1].abs().sum()) < 1e-3


def test_masses():
    grid = Grid.unit((20, 20))
    a, b = rough(grid, 1), rough(grid, 2)
    balanced, unbalanced = GridSinkhorn(0.1, tolerance=1e-8), GridSinkhorn(0.1, 0.3, normalise=True, tolerance=1e-8)
    assert float(balanced(Image(5 * a, grid), Image(b, grid))) == pytest.approx(float(balanced(Image(a, grid), Image(b, grid))))
    assert float(unbalanced(Image(5 * a, grid), Image(5 * b, grid))) == pytest.approx(float(unbalanced(Image(a, grid), Image(b, grid))))
    assert float(unbalanced(Image(2 * a, grid), Image(a, grid))) > 1e-3


@pytest.mark.parametrize("shape", [(64, 64), (40, 40, 40)])
def test_what_does_not_overlap_is_pulled_together(shape):
    """The gradient pushes every part of the moved image towards the target, from any distance: its descent direction moves mass along v."""
    grid = Grid.unit(shape)
    x = grid.identity(torch.zeros(1))
    ball = [(((x - c) ** 2).sum(1, keepdim=True) < 0.1**2).float() for c in (0.2, 0.75)]
    a = ball[0].requires_grad_()
    (gradient,) = torch.autograd.grad(GridSinkhorn(0.05)(Image(a, grid), Image(ball[1], grid)), a)
    inside = ball[0].detach()[0, 0] > 0
    for axis in range(len(shape)):
        slope = torch.gradient(gradient[0, 0], dim=axis)[0][inside]
        assert float((slope < 0).float().mean()) > 0.99


def test_potentials_and_their_error():
    grid = Grid.unit((32, 32, 32))
    a, b = gaussian_density(grid, [0.4] * 3, [0.1] * 3), gaussian_density(grid, [0.6] * 3, [0.1] * 3)
    for tolerance in (0.05, 0.002):
        found = GridSinkhorn(1 / 31, tolerance=tolerance).potentials(Image(a, grid), Image(b, grid))
        assert found.error <= tolerance
        alpha = [1.0] * 3
        plan = a[:, 0] * torch.exp(found.f * 31**2 + log_convolve(b[:, 0].clamp_min(1e-300).log() + found.g * 31**2, alpha))
        assert float((plan - a[:, 0]).abs().sum()) < 2 * tolerance


def test_stopping_short_is_said_once(caplog):
    grid = Grid.unit((20, 20))
    a, b = Image(rough(grid, 1), grid), Image(rough(grid, 2), grid)
    for _ in range(2):
        GridSinkhorn(0.0501, tolerance=1e-9, iterations=2)(a, b)
    assert [r.levelname for r in caplog.records if "stopped after 2 iterations" in r.message] == ["WARNING"]
    GridSinkhorn(0.1, tolerance=0.05)(a, b)
    assert len(caplog.records) == 1


def test_channels_and_batches_are_independent():
    grid = Grid.unit((20, 24))
    a = torch.cat([torch.cat([rough(grid, k), rough(grid, k + 5)], 1) for k in range(2)])
    b = torch.cat([rough(grid, 9), rough(grid, 10)], 1)
    similarity = GridSinkhorn(0.1, tolerance=1e-8)
    together = similarity(Image(a, grid), Image(b, grid))
    for k in range(2):
        alone = [float(similarity(Image(a[k : k + 1, c : c + 1], grid), Image(b[:, c : c + 1], grid))) for c in range(2)]
        assert float(together[k]) == pytest.approx(sum(alone) / 2, rel=1e-6)


def test_faults():
    grid = Grid.unit((12, 12))
    good, flat = Image(rough(grid, 1), grid), Image(torch.ones(1, 1, 12, 12, dtype=torch.float64), grid)
    rounded = Image(good.data - (good.data.min() + 1e-7) * (good.data == good.data.min()), grid)
    assert torch.isfinite(GridSinkhorn(0.1)(rounded, Image(good.data.flip(2), grid))).all()
    empty, negative = Image(torch.zeros_like(flat.data), grid), Image(good.data - 0.5, grid)
    similarity = GridSinkhorn(0.1)
    for pair, message in (((flat, good), "constant"), ((good, flat), "constant"), ((good, empty), "empty"), ((negative, good), ">= 0")):
        with pytest.raises(InputError, match=message):
            similarity(*pair)
    with pytest.raises(DivergenceError, match="empty"):
        similarity(empty, good)
    with pytest.raises(DivergenceError, match="mask"):
        similarity(Image(good.data, grid, torch.zeros_like(good.data)), good)
    for arguments, message in (
        ({"blur": 0.0}, "blur"),
        ({"reach": -1.0}, "reach"),
        ({"p": 1}, "p must be 2"),
        ({"tolerance": 0.0}, "tolerance"),
    ):
        with pytest.raises(ConfigError, match=message):
            GridSinkhorn(**arguments)
