"""One geodesic at any time, and gradients at constant memory."""

import pytest
import torch
from conftest import preweights, swirl, zeros

from rdmm import LDDMM, RDMM, SVF, Grid, InitialConditions, Integrator, MultiGaussian
from rdmm.dynamics import integrator
from rdmm.dynamics.semi_lagrangian import SemiLagrangian

SMOOTHER = MultiGaussian([0.05, 0.1, 0.15, 0.3], [0.3, 0.3, 0.2, 0.2])
DYNAMICS = {"svf": SVF, "lddmm": LDDMM, "rdmm": RDMM}
GRID = Grid.unit((18, 16))


def conditions(name: str, size: float = 0.3) -> InitialConditions:
    return InitialConditions(swirl(GRID, size), preweights(GRID) if name == "rdmm" else None)


@pytest.mark.parametrize(
    ("method", "size"), [("semi_lagrangian", 0.3), ("semi_lagrangian", 3.0), ("rk4", 0.3), ("midpoint", 0.3), ("dopri5", 1.0)]
)
@pytest.mark.parametrize("name", DYNAMICS)
def test_the_steps_do_not_depend_on_the_times_asked_for(name, method, size):
    """The path at t = 1 is the map itself, whatever other times are written; a fast flow too."""
    dynamics, ic = DYNAMICS[name](SMOOTHER, Integrator(method, steps=5)), conditions(name, size)
    u = dynamics.shoot(ic, zeros(GRID)).displacement
    for times in ([0.0, 1.0], [k / 8 for k in range(9)], [0.31, 0.32, 0.9, 1.0]):
        path = dynamics.geodesic(ic, zeros(GRID), times)
        assert [s.t for s in path] == times
        assert float((path[-1].displacement - u).abs().max()) < 1e-12


@pytest.mark.parametrize("method", ["semi_lagrangian", "rk4"])
def test_a_time_within_a_step_is_on_the_path(method):
    dynamics = RDMM(SMOOTHER, Integrator(method, steps=5))
    exact = RDMM(SMOOTHER, Integrator(method, steps=80)).geodesic(conditions("rdmm"), zeros(GRID), [0.1, 0.35, 0.9])
    path = dynamics.geodesic(conditions("rdmm"), zeros(GRID), [0.1, 0.35, 0.9])
    for a, b in zip(path, exact, strict=True):
        assert float((a.displacement - b.displacement).abs().max()) < 0.1 * min(GRID.spacing)


def saved_numbers(compute) -> int:
    """Numbers that autograd keeps for the backward pass of ``compute()``."""
    kept = 0

    def keep(x):
        nonlocal kept
        kept += x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        compute()
    return kept


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("name", ["svf", "lddmm", "rdmm"])
@pytest.mark.parametrize("free", [False, True])
def test_the_adjoint_keeps_no_trajectory(name, method, free):
    """As much for ten times the steps; and much less than backpropagation, with and without pre-weights that need a gradient."""
    if free and name != "rdmm":
        pytest.skip("only RDMM has pre-weights")
    ic = conditions(name)
    m = ic.momentum.clone().requires_grad_()
    h = None if ic.weights is None else ic.weights.clone().requires_grad_(free)

    def kept(steps, adjoint):
        accuracy = 10.0 ** -(2 + steps / 4)
        dynamics = DYNAMICS[name](SMOOTHER, Integrator(method, accuracy, accuracy, steps, adjoint))
        return saved_numbers(lambda: dynamics.shoot(InitialConditions(m, h), zeros(GRID)))

    assert kept(4, True) == kept(12, True) < 0.2 * kept(12, False)


@pytest.mark.parametrize("name", ["lddmm", "rdmm"])
def test_the_adjoint_without_free_pre_weights_is_backpropagation(name):
    gradients = []
    for adjoint in (True, False):
        m = conditions(name).momentum.requires_grad_()
        u = DYNAMICS[name](SMOOTHER, Integrator("rk4", steps=20, adjoint=adjoint)).shoot(
            InitialConditions(m, conditions(name).weights), zeros(GRID)
        )
        gradients.append(torch.autograd.grad(u.displacement.square().sum(), m)[0])
    assert 0 < float((gradients[0] - gradients[1]).norm()) < 1e-3 * float(gradients[1].norm())


def kept_bytes(compute) -> int:
    """Bytes that autograd keeps for the backward pass of ``compute()``; what is kept twice takes its place once."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x):
        compute()
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize("name", ["lddmm", "rdmm"])
def test_a_trajectory_takes_no_more_than_was_reckoned(name):
    m, steps = conditions(name).momentum.requires_grad_(), 5
    channels = 4 if name == "lddmm" else 4 + 2 * len(SMOOTHER.sigmas)  # m, u and, of RDMM, h and w
    dynamics = DYNAMICS[name](SMOOTHER, Integrator(steps=steps))
    taken = kept_bytes(lambda: dynamics.shoot(InitialConditions(m, conditions(name).weights), zeros(GRID)))
    assert taken < integrator.KEPT_PER_STEP * steps * channels * m[0, 0].nbytes


@pytest.mark.parametrize("name", ["lddmm", "rdmm"])
def test_steps_are_repeated_only_where_the_trajectory_is_too_large(monkeypatch, name):
    gradients, counts, step = [], [], SemiLagrangian.step
    monkeypatch.setattr(SemiLagrangian, "step", lambda *a: counts.append(len(gradients)) or step(*a))
    for most in (2**29, 0):
        monkeypatch.setattr(integrator, "MOST_KEPT", most)
        m = conditions(name).momentum.requires_grad_()
        u = DYNAMICS[name](SMOOTHER, Integrator(steps=5)).shoot(InitialConditions(m, conditions(name).weights), zeros(GRID)).displacement
        gradients.append(torch.autograd.grad(u.square().sum(), m)[0])
    assert (counts.count(0), counts.count(1)) == (5, 10)
    assert torch.equal(*gradients)
