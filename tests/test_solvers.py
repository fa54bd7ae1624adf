"""Runge-Kutta methods and the reverse-time adjoint, in float64: order, tolerance, gradients, and the papers' solver."""

from functools import partial

import pytest
import torch
from conftest import preweights, swirl, zeros

from rdmm import LDDMM, RDMM, ConfigError, DivergenceError, Grid, InitialConditions, Integrator, MultiGaussian
from rdmm.dynamics.solvers import METHODS, Solver, adjoint_path
from rdmm.kernels.available import set_threads

START = (torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))
SMOOTHER = MultiGaussian([0.1, 0.15, 0.2, 0.3], [0.1, 0.3, 0.3, 0.3])
GRID = Grid.unit((15, 13))


def pendulum(y):
    return y[1], -torch.sin(y[0])


def path(method, steps=1, rtol=1e-4, times=(1.0,), f=pendulum):
    return Solver(METHODS[method], steps, rtol).path(f, START, times, [0.0, 0.0])


EXACT = path("dopri5", rtol=1e-13, times=(0.37, 1.0))


def error(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_methods_converge_to_their_order(method, order):
    """At the end of a step, and within one, where a cubic goes through."""
    for k, time in enumerate((0.37, 1.0)):
        errors = [error(path(method, n, times=(time, 1.0))[0], EXACT[k]) for n in (10, 20)]
        assert errors[0] / errors[1] > 0.75 * 2**order


def test_the_adaptive_method_keeps_its_tolerance():
    for rtol in (1e-4, 1e-7, 1e-10):
        assert error(path("dopri5", rtol=rtol)[0], EXACT[1]) < 5 * rtol
    assert error(path("dopri5", rtol=1e-4, times=(0.37, 1.0))[0], EXACT[0]) < 1e-3


def test_a_state_that_blows_up_is_an_error():
    with pytest.raises(DivergenceError, match="dopri5 could not reach t=1: at t=0"):
        path("dopri5", f=lambda y: (y[0] ** 2 + 30 * y[0], y[1] ** 2 * 9))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_several_times_are_those_of_backpropagation(method):
    """By the start and by a parameter; of a time within a step too."""
    gradients = []
    for adjoint in (True, False):
        leaves = [x.clone().requires_grad_() for x in (*START, torch.tensor(1.3, dtype=torch.float64))]
        f = lambda y, g=leaves[2]: (y[1], -g * torch.sin(y[0]))  # noqa: E731
        solver, times = Solver(METHODS[method], 400, 1e-9), (0.3311, 0.7, 1.0)
        if adjoint:
            states = adjoint_path(solver, f, tuple(leaves[:2]), times, 0.0, leaves[2:])
        else:
            states = solver.path(f, tuple(leaves[:2]), times, [0.0, 0.0])
        gradients.append(torch.autograd.grad(sum(k * (q + p * q).sum() for k, (q, p) in enumerate(states, 1)), leaves))
    assert error(*gradients) < {"euler": 2e-2, "midpoint": 1e-4, "rk4": 1e-7, "dopri5": 1e-5}[method]


def shot(momentum):
    return LDDMM(SMOOTHER, Integrator("dopri5")).shoot(InitialConditions(momentum), zeros(GRID)).displacement


def test_the_adjoint_has_no_scale_of_its_own():
    """A loss in other units has the gradient in other units. No absolute tolerance holds for all of them."""
    gradients = []
    for unit in (1.0, 1e-9):
        m = swirl(GRID, 0.2).requires_grad_()
        gradients.append(torch.autograd.grad(unit * shot(m).square().sum(), m)[0] / unit)
    assert torch.allclose(*gradients, rtol=1e-9, atol=0)


def test_dopri5_does_not_depend_on_threads():
    maps = []
    for threads in (1, 2):
        set_threads(threads)
        maps.append(shot(swirl(GRID, 0.2).float()))
    assert torch.equal(*maps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("smooth", [True, False], ids=["lddmm", "rdmm"])
def test_the_papers_library_finds_the_same(smooth, method):
    """Map and gradients by torchdiffeq's adjoint are those of our methods, of the same steps and tolerance."""
    tolerance = 1e-7 if smooth else 1e-4  # h ∘ phi is linear between voxels: no more digits to be had
    results = []
    for library in ("rdmm", "torchdiffeq"):
        m, h = swirl(GRID, 0.2).requires_grad_(), None if smooth else preweights(GRID).requires_grad_()
        dynamics = LDDMM if smooth else partial(RDMM, weight_sigma=0.05)
        ic = InitialConditions(m, h)
        u = dynamics(SMOOTHER, Integrator(method, tolerance, tolerance, library=library)).shoot(ic, zeros(GRID)).displacement
        results.append([u.detach(), *torch.autograd.grad(u.square().sum(), [x for x in (m, h) if x is not None])])
    for a, b in zip(*results, strict=True):
        assert float((a - b).norm()) < 100 * tolerance * float(b.norm())


def test_the_papers_library_has_methods_of_its_own():
    with pytest.raises(ConfigError, match="torchdiffeq has no semi_lagrangian method"):
        Integrator(library="torchdiffeq")
    with pytest.raises(ConfigError, match="must be one of rdmm, torchdiffeq"):
        Integrator("dopri5", library="scipy")


def test_divergence_of_the_papers_adjoint_is_an_error_to_back_off_from():
    """torchdiffeq gives up by an assertion, in the backward pass too; the line search knows only DivergenceError."""
    weight, is_back = torch.tensor(1.0, dtype=torch.float64, requires_grad=True), []

    def f(y):
        return (weight * torch.sin(1e7 * y[0]) * 1e7 if is_back else -weight * y[0],)

    (end,) = Integrator("dopri5", 1e-6, 1e-6, library="torchdiffeq")(f, (torch.ones(3, dtype=torch.float64),), [weight])
    is_back.append(True)
    with pytest.raises(DivergenceError, match="torchdiffeq could not solve"):
        torch.autograd.grad(end.sum(), weight)
