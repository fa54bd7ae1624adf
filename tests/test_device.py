"""On a GPU: the host waits once an evaluation, for the energy; what diverges shows there; batches are their pairs.

Where there is no GPU, the CPU pretends to be one (``pretended_device``), and every value is computed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pretended_device import Waits

from rdmm.dynamics import LDDMM, RDMM, SVF, InitialConditions, Integrator
from rdmm.optim import LBFGS, NoOptimizer, Problem
from rdmm.regularizer import MultiGaussian
from rdmm.regularizer.penalty import WeightPenalty
from rdmm.similarity import LNCC, MIND, NCC, NMI, SSD, CorrelationRatio, MultiKernelLNCC
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Affine
from rdmm.stages import AffineOpt, Chain, Deform
from rdmm.types import DivergenceError

SMOOTHER = MultiGaussian([0.05, 0.2], [0.4, 0.6], boundary="slip", compressibility=0.25)
SHORT = Integrator(steps=1)
GRIDS = {2: Grid.unit((16, 14)), 3: Grid.unit((10, 9, 8))}


def texture(grid: Grid, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Smooth blobs >= 0, (1, 1, *s), moved along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    x = grid.identity(torch.zeros(1))
    centers = torch.rand(8, grid.ndim, generator=generator)
    centers[:, 0] += shift
    return sum(torch.exp(-((x - c.view(1, -1, *(1,) * grid.ndim)) ** 2).sum(1, keepdim=True) / 0.02) for c in centers)


def pair_of(ndim: int, *, batch: int = 1, masked: bool = False) -> Pair:
    grid = GRIDS[ndim]
    fixed, moving = (torch.cat([texture(grid, k, shift) for k in range(batch)]) for shift in (0.0, 0.04))
    mask = (fixed > 0.2).float() if masked else None
    return Pair(Image(fixed, grid, mask), Image(moving, grid, mask))


def evaluation(problem: Problem, pair: Pair):
    """The energy of a momentum as a function of the optimizer's vector, with its gradient; and a vector."""
    dynamics = problem.dynamics
    ic = dynamics.complete(
        InitialConditions(torch.zeros_like(pair.fixed.data).expand(-1, pair.fixed.grid.ndim, *pair.fixed.grid.shape)), pair.source
    )
    space = dynamics.coordinates(ic, pair.source, True, dynamics.preconditioner(ic))

    def evaluate(x: torch.Tensor):
        x = x.detach().requires_grad_()
        energy, _ = problem.energy(space.unpack(x), pair)
        return energy.total.detach(), torch.autograd.grad(energy.total.sum(), x)[0]

    return evaluate, space.pack(ic).detach() + 1e-3


DYNAMICS = {"svf": SVF(SMOOTHER, SHORT), "lddmm": LDDMM(SMOOTHER, SHORT), "rdmm": RDMM(SMOOTHER, SHORT)}
SIMILARITIES = [SSD(), NCC(), NMI(), LNCC(3), MultiKernelLNCC((3, 5), (0.5, 0.5), "voxel"), MIND(), CorrelationRatio()]


def waits_of_an_evaluation(problem: Problem, pair: Pair) -> list[str]:
    with Waits() as waits:
        there = replace(pair, fixed=pair.fixed.to(waits.device), moving=pair.moving.to(waits.device))
        evaluate, x = evaluation(problem, there)
        evaluate(x)  # constants are copied to the device once
        waits.clear()
        evaluate(x)
        return list(waits)


WAITS = {
    "a value": lambda x: float(x.sum()),
    "a condition": lambda x: bool((x > 1).any()),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "a mask": lambda x: x[x > 1],
    "places": lambda x: (x > 1).nonzero(),
}


@pytest.mark.parametrize("kind", WAITS)
def test_every_wait_is_seen(kind):
    with Waits() as waits:
        x = torch.arange(4.0, device=waits.device, requires_grad=True)
        torch.autograd.grad((x * x).exp().sum(), x)
        assert not waits
        WAITS[kind](x.detach())
        assert waits


def test_devices_do_not_mix():
    with Waits() as waits:
        x = torch.zeros(2, device=waits.device)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda s: type(s).__name__)
def test_the_host_does_not_wait_inside_an_evaluation(similarity, masked):
    waits = waits_of_an_evaluation(Problem(DYNAMICS["svf"], similarity, barrier=1.0), pair_of(3, masked=masked))
    if isinstance(similarity, CorrelationRatio):  # which solves for its polynomials by eigenvalues
        waits = [wait for wait in waits if "correlation_ratio.py" not in wait]
    assert not waits


@pytest.mark.parametrize("name", ["lddmm", "rdmm"])
def test_a_geodesic_reads_its_speed_first(name):
    """The number of steps depends on it."""
    problem = Problem(DYNAMICS[name], SSD(), WeightPenalty(tv=0.1), barrier=1.0)
    waits = waits_of_an_evaluation(problem, pair_of(2, batch=2))
    assert len(waits) == 1 and "semi_lagrangian.py" in waits[0]


def test_an_initial_map_is_copied_once():
    pair = pair_of(2)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 2] = 0.02
    other = replace(pair.moving, grid=Grid(pair.moving.grid.shape, 1.1 * torch.eye(3).numpy() - [[0, 0, 0], [0, 0, 0], [0, 0, 0.1]]))
    with Waits() as waits:
        there = Pair(pair.fixed.to(waits.device), other.to(waits.device), Affine(matrix.to(waits.device)))
        evaluate, x = evaluation(Problem(DYNAMICS["svf"], SSD()), there)
        evaluate(x)
        waits.clear()
        evaluate(x)
        assert not waits


def stages(name: str) -> Chain:
    deform = Deform(Problem(DYNAMICS[name], SSD(), similarity_weight=10.0, barrier=1.0), LBFGS((0.5, 1.0), (2, 2)))
    return Chain([AffineOpt(models=("translation",), voxels=(16,), iterations=2), deform])


@pytest.mark.parametrize("name", DYNAMICS)
def test_a_whole_run(name):
    """Affine and deformation: about the CPU's result. The host waits for each energy and slope, and twice an iteration for the search."""
    pair = pair_of(2)
    expected = stages(name)(pair)
    with Waits() as waits:
        found = stages(name)(replace(pair, fixed=pair.fixed.to(waits.device), moving=pair.moving.to(waits.device)))
        where = Counter(wait.split(" at ")[-1].split(":")[0] for wait in waits)
    evaluations, iterations = where["problem.py"], sum("iteration" in row for row in found.history)
    assert evaluations >= iterations >= 3
    assert where["lbfgs.py"] <= evaluations + 2 * iterations + 2
    assert found.energy["total"] == pytest.approx(expected.energy["total"], rel=0.1)


def diverging(pair: Pair) -> InitialConditions:
    momentum = torch.zeros_like(pair.fixed.data).repeat(1, 2, 1, 1)
    momentum[:, :, 5, 5] = math.inf
    return InitialConditions(momentum)


@pytest.mark.fault(55)
@pytest.mark.parametrize("name", DYNAMICS)
def test_what_diverges_is_refused_and_no_nan_is_sampled(name, monkeypatch):
    sampled = F.grid_sample

    def checked(values, points, **options):
        assert bool(points.isfinite().all())
        return sampled(values, points, **options)

    monkeypatch.setattr(F, "grid_sample", checked)
    pair = pair_of(2)
    with Waits() as waits, pytest.raises(DivergenceError, match=r"not finite|crosses"):
        Deform(Problem(DYNAMICS[name], SSD()), NoOptimizer(), diverging)(
            replace(pair, fixed=pair.fixed.to(waits.device), moving=pair.moving.to(waits.device))
        )


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda s: type(s).__name__)
def test_masks_that_do_not_overlap_are_refused(similarity):
    pair, x = pair_of(2), GRIDS[2].identity(torch.zeros(1))[:, :1]
    with Waits() as waits:
        fixed, moving = (replace(i, mask=m.float()).to(waits.device) for i, m in ((pair.fixed, x < 0.3), (pair.moving, x > 0.6)))
        with pytest.raises(DivergenceError, match="masks"):
            Deform(Problem(DYNAMICS["svf"], similarity), NoOptimizer())(Pair(fixed, moving))


@pytest.mark.parametrize("name", DYNAMICS)
def test_a_batch_is_its_pairs(name):
    """Energies and gradients of two pairs at once are those of each alone."""
    pair, problem = pair_of(2, batch=2), Problem(DYNAMICS[name], LNCC(), barrier=1.0)
    with Waits() as waits:
        both = replace(pair, fixed=pair.fixed.to(waits.device), moving=pair.moving.to(waits.device))
        evaluate, x = evaluation(problem, both)
        energies, gradient = (y.cpu() for y in evaluate(x))
        for k in range(2):
            one = replace(
                both, fixed=Image(both.fixed.data[k : k + 1], both.fixed.grid), moving=Image(both.moving.data[k : k + 1], both.moving.grid)
            )
            alone, x = evaluation(problem, one)
            energy, slope = (y.cpu() for y in alone(x))
            assert torch.allclose(energies[k : k + 1], energy, rtol=1e-5)
            if name != "rdmm":
                assert torch.allclose(gradient.view(2, -1)[k], slope, atol=1e-5 * float(slope.abs().max()))
