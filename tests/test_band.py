"""Waves of a box with slippery walls: what compresses and what doesn't, the search in the waves, and maps without edges."""

from __future__ import annotations

import pytest
import torch

from rdmm.dynamics import LDDMM, SVF, Integrator
from rdmm.dynamics.base import InitialConditions
from rdmm.dynamics.coordinates import MomentumCoordinates
from rdmm.metrics import inverse_consistency
from rdmm.regularizer import MultiGaussian
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Dense, polished
from rdmm.types import ConfigError

GRIDS = [Grid.unit((40, 31)), Grid((20, 17, 13), torch.diag(torch.tensor([1.0, 1.0, 1.5, 1.0])).double().numpy())]


def smoother(compressibility, boundary="slip"):
    return MultiGaussian([0.05, 0.1, 0.2], [0.2, 0.3, 0.5], boundary, compressibility=compressibility)


def field(grid, seed=0):
    return torch.randn(1, grid.ndim, *grid.shape, generator=torch.manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "3d"])
@pytest.mark.parametrize("compressibility", [0.0, 0.25, 1.0])
def test_the_kernel_is_self_adjoint_and_positive(grid, compressibility):
    k = smoother(compressibility)
    a, b = field(grid), field(grid, 1)
    assert float((k(a, grid) * b).sum()) == pytest.approx(float((a * k(b, grid)).sum()), rel=1e-10)
    assert float((k(a, grid) * a).sum()) > 0


@pytest.mark.parametrize("grid", [GRIDS[0], Grid.unit((24, 25, 26))], ids=["2d", "3d"])
def test_far_from_the_walls_it_is_the_kernel_of_the_plane(grid):
    """At compressibility 1 the box is felt only near its walls; at any, a uniform push in the middle moves the middle along it."""
    m = torch.zeros(1, grid.ndim, *grid.shape, dtype=torch.float64)
    middle = tuple(n // 2 for n in grid.shape)
    m[(0, 0, *middle)] = 1 / grid.cell
    narrow = [MultiGaussian([0.05], [1.0], boundary) for boundary in ("slip", "zero")]
    v, w = (k(m, grid) for k in narrow)
    assert float((v - w).abs().max()) < 1e-3 * float(w.abs().max())
    assert float(smoother(0.25)(m, grid)[(0, 0, *middle)]) > 0


def divergence(v, grid):
    return sum(ops.partial(v[:, i], i, grid) for i in range(grid.ndim))


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "3d"])
def test_incompressible_flows_keep_volumes(grid):
    """Inside, div v falls with the square of the voxel (central differences), against that of the same kernel at compressibility 1."""
    fine = grid.resized([2 * n - 1 for n in grid.shape])
    m = ops.refine(field(grid.resized([6] * grid.ndim)), fine.shape)
    inside = (slice(None), *(slice(4, -4),) * grid.ndim)
    none, free = (float(divergence(smoother(c)(m, fine), fine)[inside].square().mean()) for c in (0.0, 1.0))
    assert none < 1e-3 * free
    half = float(divergence(smoother(0.25)(m, fine), fine)[inside].square().mean())
    assert half == pytest.approx(free / 16, rel=0.1)


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "3d"])
@pytest.mark.parametrize("boundary", ["zero", "reflect", "periodic", "slip"])
@pytest.mark.parametrize("dynamics", [SVF, LDDMM])
def test_velocity_and_energy_of_the_waves_are_those_of_the_momentum(grid, boundary, dynamics):
    """The search knows v0 and <m0, v0> without a filter; they are K m0 and <m0, K m0>, for what the search can reach."""
    k = smoother(0.25 if boundary == "slip" else 1.0, boundary)
    space = MomentumCoordinates(k, grid, InitialConditions(torch.zeros_like(field(grid))), is_metric=True)
    x = space.pack(InitialConditions(k(field(grid), grid)))
    ic = space.unpack(x)
    source = Image(torch.zeros(1, 1, *grid.shape, dtype=torch.float64), grid)
    filtered = InitialConditions(ic.momentum)
    assert float(ic.start.energy) == pytest.approx(float(dynamics(k).energy(filtered, source)), rel=0.01)
    v = k(ic.momentum, grid)
    assert float((ic.start.velocity - v).abs().max()) < 0.02 * float(v.abs().max())
    assert torch.allclose(space.pack(ic), x, atol=0.02 * float(x.abs().max()))


def test_compressibility_needs_walls():
    with pytest.raises(ConfigError, match=r"boundary=slip"):
        smoother(0.5, "zero")
    for wrong in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=r"\[0, 1\]"):
            smoother(wrong)


@pytest.mark.parametrize("shape", [(17, 12), (9, 12, 7), (2, 5), (1, 4)])
def test_refining_keeps_voxels_and_lines_and_has_order_four(shape):
    values = torch.randn(1, 2, *shape, generator=torch.manual_seed(0), dtype=torch.float64)
    fine = ops.refine(values, tuple(3 * (n - 1) + 1 for n in shape))
    assert torch.allclose(fine[(slice(None), slice(None), *(slice(None, None, 3),) * len(shape))], values, atol=1e-12)
    line = torch.linspace(0, 1, shape[0], dtype=torch.float64).view(1, 1, -1, 1).expand(1, 1, shape[0], 4)
    assert torch.allclose(
        ops.refine(line, (50, 4))[0, 0, :, 0], torch.linspace(0, 1, 50, dtype=torch.float64).mul(shape[0] > 1), atol=1e-12
    )

    def error(n):
        x, y = (torch.linspace(0, 1, k, dtype=torch.float64) for k in (n, 241))
        wave = ops.refine(torch.sin(5 * x).view(1, 1, n, 1), (241, 1)).flatten()
        return float((wave - torch.sin(5 * y))[60:181].abs().max())

    assert 12 < error(21) / error(41) < 24


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "3d"])
def test_a_polished_inverse_is_one(grid):
    u = 0.6 * ops.refine(field(grid.resized([5] * grid.ndim)), grid.shape) * min(grid.extent) / 12
    forward = Dense(u, grid)
    rough = Dense(-u, grid)
    before, after = (inverse_consistency(forward, w, grid) for w in (rough, polished(rough, forward)))
    assert after < 0.1 * before


def test_the_written_map_has_no_edges_at_the_shooting_grid():
    """Second differences of log det J do not jump from cell to cell: linear interpolation of the displacement makes steps of log det J."""
    image = Image(torch.zeros(1, 1, 97, 97, dtype=torch.float64), Grid.unit((97, 97)))
    k = smoother(0.25)
    m = ops.refine(field(Grid.unit((7, 7))), (25, 25))
    m = m / SVF(k).energy(InitialConditions(m), image).sqrt() * 0.3
    u = SVF(k, Integrator()).shoot(InitialConditions(m), image).displacement
    linear = ops.resize(u[..., ::4, ::4], (97, 97))

    def roughness(u):
        log = ops.jacobian_determinant(u, image.grid).log()
        return float(log.diff(n=2, dim=1)[:, 8:-8, 8:-8].square().mean().sqrt())

    assert roughness(u) < 0.3 * roughness(linear)
