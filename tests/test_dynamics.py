"""The laws of shooting, in float64."""

import pytest
import torch
from conftest import GRIDS, bump, center, oblique, preweights, swirl, zeros

from rdmm import LDDMM, RDMM, SVF, ConfigError, DivergenceError, Grid, Image, InitialConditions, Integrator, MultiGaussian
from rdmm.dynamics import integrator as shooting
from rdmm.dynamics.epdiff import coadjoint_rate, map_rate
from rdmm.regularizer.metric import Metric
from rdmm.regularizer.weights import constant, normalize, parameters
from rdmm.spatial import ops

SMOOTHER = MultiGaussian([0.05, 0.07, 0.1, 0.3], [0.2, 0.4, 0.3, 0.1])
FINE = MultiGaussian([0.03, 0.06, 0.09, 0.3], [0.2, 0.4, 0.3, 0.1])
METHODS = {"rk4": Integrator("rk4", steps=20), "dopri5": Integrator("dopri5", 1e-8, 1e-8), "semi_lagrangian": Integrator(steps=16)}


def make(name: str, integrator: Integrator, smoother=SMOOTHER):
    return RDMM(smoother, integrator, 0.03) if name == "RDMM" else {"SVF": SVF, "LDDMM": LDDMM}[name](smoother, integrator)


def conditions(name: str, grid: Grid, size: float = 0.25) -> InitialConditions:
    return InitialConditions(swirl(grid, size), preweights(grid) if name == "RDMM" else None)


def inside(x: torch.Tensor, margin: int = 3) -> torch.Tensor:
    return x[(..., *(slice(margin, -margin),) * (x.ndim - 2))]


def drift(name: str, n: int, integrator: Integrator, smoother=FINE, shift: float = 0.0) -> float:
    """Relative change of <m, v> over t in [0, 1]; ``shift`` takes the momentum towards the walls, in domain units."""
    grid = Grid.unit((n, n))
    ic = conditions(name, grid)
    ic = InitialConditions(ic.momentum.roll(round(shift * n), 2), ic.weights)
    start, end = make(name, integrator, smoother).geodesic(ic, zeros(grid), (0.0, 1.0))
    first, last = (float(ops.inner(m.momentum, m.velocity, grid)) for m in (start, end))
    return abs(last - first) / first


RK4 = Integrator("rk4", steps=40)


@pytest.mark.parametrize("integrator", [RK4, Integrator(steps=40)], ids=["rk4", "semi_lagrangian"])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_lddmm_conserves_energy(integrator, shift):
    assert drift("LDDMM", 64, integrator, shift=shift) < 1e-4


def test_rdmm_conserves_energy_to_second_order():
    coarse, fine = drift("RDMM", 48, RK4), drift("RDMM", 96, RK4)
    assert fine < 1e-3
    assert coarse / fine > 3.2


def test_semi_lagrangian_rdmm_conserves_energy():
    """Composition damps the map that carries the weights, so the order is between the first and the second."""
    coarse, fine = drift("RDMM", 48, Integrator(steps=40)), drift("RDMM", 160, Integrator(steps=40))
    assert fine < 2e-3
    assert coarse / fine > 4


@pytest.mark.parametrize("name", ["LDDMM", "RDMM"])
def test_the_default_steps_conserve_energy(name):
    assert drift(name, 64, Integrator(steps=5)) < 4e-3


def test_rdmm_conserves_energy_in_anisotropic_3d():
    grid = GRIDS["3d"]
    dynamics, ic = make("RDMM", METHODS["rk4"]), conditions("RDMM", grid)
    energies = [float(ops.inner(m.momentum, m.velocity, grid)) for m in dynamics.geodesic(ic, zeros(grid), (0.0, 0.5, 1.0))]
    assert max(energies) / min(energies) < 1.03


def test_without_its_source_rdmm_loses_energy(monkeypatch):
    with_source = drift("RDMM", 64, RK4)
    monkeypatch.setattr(Metric, "source", lambda self, powers, h: torch.zeros_like(powers[:, :2]))
    assert drift("RDMM", 64, RK4) > 20 * with_source


def test_momentum_energy_is_that_of_the_initial_conditions(grid):
    for name in ("SVF", "LDDMM", "RDMM"):
        dynamics, ic = make(name, METHODS["rk4"]), conditions(name, grid)
        moment = dynamics.geodesic(ic, zeros(grid), (0.0,))[0]
        assert float(dynamics.energy(ic, zeros(grid))) == pytest.approx(float(ops.inner(moment.momentum, moment.velocity, grid)))


@pytest.mark.parametrize("method", ["rk4", "semi_lagrangian"])
def test_rdmm_with_constant_weights_is_lddmm(grid, method):
    m, smoother = swirl(grid, 0.2), MultiGaussian([0.12, 0.2, 0.3], [0.3, 0.3, 0.4])
    weights = constant(smoother.weights, grid, m)
    a = make("RDMM", METHODS[method], smoother).shoot(InitialConditions(m, weights), zeros(grid)).displacement
    b = make("LDDMM", METHODS[method], smoother).shoot(InitialConditions(m), zeros(grid)).displacement
    assert float((a - b).abs().max()) < 1e-5 * float(b.abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["SVF", "LDDMM", "RDMM"])
def test_inverse_map(grid, name, method):
    dynamics, ic = make(name, METHODS[method]), conditions(name, grid)
    phi, inverse = dynamics.flow(ic, zeros(grid))
    x = grid.identity(ic.momentum)
    size = float(phi.displacement.abs().max())
    assert size > 0.02
    voxels = 1.1 if method == "semi_lagrangian" else 0.7  # maps are linear between voxels, and composed step by step
    for error in (phi(inverse(x)) - x, inverse(phi(x)) - x):
        assert float(inside(error).abs().max()) < voxels * max(grid.spacing)


def test_inverse_error_is_second_order():
    errors = []
    for n in (33, 65):
        grid = Grid.unit((n, n))
        phi, inverse = make("LDDMM", Integrator("rk4", steps=20)).flow(conditions("LDDMM", grid, 0.1), zeros(grid))
        x = grid.identity(torch.zeros(1, dtype=torch.float64))
        errors.append(float(inside(phi(inverse(x)) - x, n // 6).square().mean().sqrt()))
    assert errors[0] / errors[1] > 3.3


def test_svf_inverse_is_the_flow_of_minus_v(grid):
    dynamics, m = make("SVF", METHODS["rk4"]), swirl(grid, 0.2)
    _, inverse = dynamics.flow(InitialConditions(m), zeros(grid))
    assert torch.allclose(inverse.displacement, dynamics.shoot(InitialConditions(-m), zeros(grid)).displacement)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_velocity_translates(method):
    grid = Grid.unit((64, 64))
    m = torch.zeros(1, 2, 64, 64, dtype=torch.float64)
    m[:, 0] = 0.05
    u = make("SVF", METHODS[method], MultiGaussian([0.2], [1.0], "reflect")).shoot(InitialConditions(m), zeros(grid)).displacement
    assert torch.allclose(inside(u[:, :1], 8), torch.tensor(-0.05, dtype=torch.float64), atol=1e-6)


def test_a_far_momentum_moves_the_middle_rigidly():
    grid = Grid.unit((64, 64))
    m = torch.zeros(1, 2, 64, 64, dtype=torch.float64)
    m[:, :1] = bump(grid, 0.15)
    u = LDDMM(MultiGaussian([0.5], [1.0]), METHODS["rk4"]).shoot(InitialConditions(m), zeros(grid)).displacement
    middle = u[..., 30:34, 30:34]
    assert float(middle[:, 0].std()) < 0.01 * float(middle[:, 0].abs().mean())


@pytest.mark.parametrize("name", ["SVF", "LDDMM", "RDMM"])
def test_solvers_agree_to_their_order(name):
    grid = Grid.unit((96, 96))
    ic = conditions(name, grid, 0.1)
    reference = make(name, Integrator("dopri5", 1e-8, 1e-8)).shoot(ic, zeros(grid)).displacement
    errors = [float((make(name, Integrator(steps=s)).shoot(ic, zeros(grid)).displacement - reference).abs().max()) for s in (4, 16)]
    assert errors[-1] < 0.06 * float(reference.abs().max())
    rk4 = make(name, Integrator("rk4", steps=20)).shoot(ic, zeros(grid)).displacement
    assert float((rk4 - reference).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["SVF", "LDDMM", "RDMM"])
def test_semi_lagrangian_converges_to_the_eulerian_solution(name):
    """Half the voxel and half the step: less than .6 of the error, the first order of RDMM's steps and of repeated interpolation."""
    errors = []
    for n, steps in ((48, 4), (96, 8)):
        grid = Grid.unit((n, n))
        ic = conditions(name, grid, 0.1)
        reference = make(name, Integrator("rk4", steps=20)).shoot(ic, zeros(grid)).displacement
        difference = make(name, Integrator(steps=steps)).shoot(ic, zeros(grid)).displacement - reference
        errors.append(float(difference.square().mean().sqrt()))
    assert errors[1] < 0.6 * errors[0]


def test_semi_lagrangian_does_not_fold_where_eulerian_does():
    torch.manual_seed(1)
    grid = Grid.unit((64, 64))
    smoother = MultiGaussian([0.04, 0.1], [0.7, 0.3])
    noise = torch.randn(1, 2, 64, 64, dtype=torch.float64)
    m = smoother(noise, grid) * bump(grid, 0.15)
    m = m * 0.15 / float(smoother(m, grid).abs().max())
    eulerian = LDDMM(smoother, Integrator("rk4", steps=20)).shoot(InitialConditions(m), zeros(grid)).displacement
    lagrangian = LDDMM(smoother, Integrator(steps=20)).shoot(InitialConditions(m), zeros(grid)).displacement
    assert float(ops.jacobian_determinant(eulerian, grid).min()) < 0
    assert float(ops.jacobian_determinant(lagrangian, grid).min()) > 0


@pytest.mark.parametrize("method", ["rk4", "dopri5", "midpoint", "euler", "semi_lagrangian"])
@pytest.mark.parametrize("name", ["SVF", "LDDMM", "RDMM"])
@pytest.mark.parametrize("shape", [(18, 16), (10, 9, 8)])
def test_gradients_adjoint_backprop_and_finite_differences(monkeypatch, name, method, shape):
    """Adjoint = backprop = finite differences, for the momentum and the pre-weights."""
    monkeypatch.setattr(shooting, "MOST_KEPT", 0)  # small trajectories too are recomputed, step by step
    if method in ("midpoint", "euler") and (len(shape) == 3 or name == "SVF"):
        pytest.skip("the cheap solvers are tried where they differ most")
    grid = Grid.unit(shape)
    steps = {"euler": 160, "midpoint": 60, "rk4": 20, "semi_lagrangian": 5}.get(method, 1)
    momentum, p = 0.3 * swirl(grid, 1.0), parameters(preweights(grid))
    weight, dm, dp = torch.randn_like(momentum), torch.randn_like(momentum), 0.1 * torch.randn_like(p)

    def value(m, p, adjoint):
        accuracy = 1e-5 if name == "RDMM" else 1e-9  # h ∘ phi is linear between voxels: no more digits to be had
        dynamics = make(name, Integrator(method, accuracy, accuracy, steps, adjoint))
        ic = InitialConditions(m, normalize(p) if name == "RDMM" else None)
        return (dynamics.shoot(ic, zeros(grid)).displacement * weight).sum()

    gradients = []
    for adjoint in (True, False):
        m, q = momentum.clone().requires_grad_(), p.clone().requires_grad_()
        wanted = (m, q) if name == "RDMM" else (m,)
        gradients.append(torch.autograd.grad(value(m, q, adjoint), wanted))
    tolerance = {"euler": 0.08, "midpoint": 2e-3, "rk4": 2e-3, "dopri5": 2e-2, "semi_lagrangian": 1e-9}[method]
    for a, b in zip(*gradients, strict=True):
        assert float((a - b).norm()) <= tolerance * float(b.norm())
    e = 1e-6
    with torch.no_grad():
        numeric = [(value(momentum + e * dm, p, False) - value(momentum - e * dm, p, False)) / (2 * e)]
        if name == "RDMM":
            numeric.append((value(momentum, p + e * dp, False) - value(momentum, p - e * dp, False)) / (2 * e))
    # dopri5 chooses its steps anew for each perturbed start, and linear interpolation has kinks
    for g, d, fd in zip(gradients[1], (dm, dp), numeric, strict=False):
        assert float((g * d).sum()) == pytest.approx(float(fd), rel=2e-2 if method in ("dopri5", "semi_lagrangian") else 1e-3, abs=1e-4)


@pytest.mark.parametrize("rate", [coadjoint_rate, map_rate])
@pytest.mark.parametrize("shape", [(9, 8), (7, 6, 5)])
def test_compiled_rates_are_the_torch_ones(monkeypatch, shape, rate):
    grid = Grid.unit(shape)
    a, v, g = (torch.randn(2, grid.ndim, *shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    results = []
    for compiled in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(ops, "has_kernels", lambda x, compiled=compiled: compiled)
            out = rate(a, v, grid)
        results.append((out, *torch.autograd.grad((out * g).sum(), (a, v))))
    for x, y in zip(*results, strict=True):
        assert torch.allclose(x, y, atol=1e-9)


def test_the_momentum_does_no_work_walls_and_all(grid):
    """<ad*_v m, v> = 0 to rounding for any m and v, rough ones that reach the walls too: the energy is conserved."""
    m, v = (torch.randn(1, grid.ndim, *grid.shape, dtype=torch.float64) for _ in range(2))
    rate = coadjoint_rate(m, v, grid)
    assert abs(float(ops.inner(rate, v, grid))) < 1e-12 * float(rate.norm() * v.norm() * grid.cell)


def test_a_fast_flow_takes_more_steps():
    """Eight steps would be unstable, so more are taken."""
    grid = Grid.unit((64, 64))
    start, end = make("LDDMM", Integrator(steps=8), FINE).geodesic(conditions("LDDMM", grid, 0.6), zeros(grid), (0.0, 1.0))
    assert float(start.velocity.abs().max()) * 63 > 1.5 * 8
    first, last = (float(ops.inner(m.momentum, m.velocity, grid)) for m in (start, end))
    assert abs(last - first) < 5e-3 * first


@pytest.mark.parametrize("grid", [Grid.unit((18, 16)), oblique((10, 9, 8), (1, 1, 1.8))])
@pytest.mark.fault(55)
def test_divergence_is_an_error_never_nan(grid):
    for name in ("SVF", "LDDMM", "RDMM"):
        for method in ("rk4", "dopri5", "semi_lagrangian"):
            ic = conditions(name, grid, 1e30)
            try:
                u = make(name, METHODS[method]).shoot(ic, zeros(grid)).displacement
            except DivergenceError:
                continue
            assert torch.isfinite(u).all()


def test_shooting_grid_is_apart_from_the_image():
    image = Image(torch.zeros(1, 1, 65, 65, dtype=torch.float64), Grid.unit((65, 65)))
    small, large = Grid.unit((33, 33)), Grid.unit((65, 65))
    coarse = make("LDDMM", METHODS["rk4"]).shoot(InitialConditions(swirl(small, 0.2)), image)
    fine = make("LDDMM", METHODS["rk4"]).shoot(InitialConditions(swirl(large, 0.2)), image)
    x = large.identity(torch.zeros(1, dtype=torch.float64))
    assert coarse.grid.shape == (65, 65)
    assert float((coarse(x) - fine(x)).abs().max()) < 0.1 * float(fine.displacement.abs().max())


def test_initial_conditions_and_dynamics_must_fit(grid):
    with pytest.raises(ConfigError, match="pre-weights"):
        make("LDDMM", METHODS["rk4"]).shoot(conditions("RDMM", grid), zeros(grid))
    with pytest.raises(ConfigError, match="one per Gaussian"):
        make("RDMM", METHODS["rk4"]).shoot(InitialConditions(swirl(grid, 0.1), preweights(grid)[:, :2]), zeros(grid))


def test_rotation_by_axes_commutes_with_shooting():
    grid = Grid.unit((40, 40))
    m = swirl(grid, 0.2) * (1 + (grid.identity(torch.zeros(1, dtype=torch.float64)) - center(grid))[:, :1])
    for name in ("SVF", "LDDMM"):
        u = make(name, METHODS["rk4"]).shoot(InitialConditions(m), zeros(grid)).displacement
        turned = make(name, METHODS["rk4"]).shoot(InitialConditions(m.transpose(2, 3).flip(1)), zeros(grid)).displacement
        assert torch.allclose(turned, u.transpose(2, 3).flip(1), atol=1e-10)
