import math

import numpy as np
import pytest
import torch
from conftest import oblique

from rdmm import Grid, metrics
from rdmm.spatial import ops
from rdmm.spatial.transform import Affine, Dense, Identity


@pytest.mark.fault(40)
def test_dice():
    a, b = torch.tensor([[1, 1, 2, 0, 3]]), torch.tensor([[1, 0, 2, 2, 0]])
    values = metrics.dice(a, b)
    assert values[1] == pytest.approx(2 / 3)
    assert values[2] == pytest.approx(2 / 3)
    assert math.isnan(values[3])
    assert metrics.mean_dice(values) == (pytest.approx(2 / 3), 2)
    assert math.isnan(metrics.mean_dice({1: math.nan})[0])


def test_tre():
    points = np.array([[0.0, 0, 0], [1, 2, 3]])
    shift = Affine(torch.tensor([[1.0, 0, 0, 3], [0, 1, 0, 4], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64))
    assert metrics.tre(points, points) == pytest.approx([0, 0])
    assert metrics.tre(points, points, shift) == pytest.approx([5, 5])


def test_identity_is_regular(grid):
    u = torch.zeros(1, grid.ndim, *grid.shape, dtype=torch.float64)
    assert set(metrics.regularity(u, grid).values()) == {0.0}
    assert torch.allclose(ops.corner_determinants(u, grid), torch.ones(1, dtype=torch.float64))
    assert ops.corner_determinants(u, grid).shape[0] == (10 if grid.ndim == 3 else 4)


def test_affine_map_has_its_determinant_everywhere():
    grid = oblique((7, 6, 5), (1, 1, 2.0))
    matrix = torch.tensor([[1.1, 0.2, 0], [0, 0.9, 0.1], [0.1, 0, 1.3]], dtype=torch.float64)
    x = grid.identity(matrix)
    u = torch.einsum("ij,bj...->bi...", matrix, x) - x
    assert torch.allclose(ops.corner_determinants(u, grid), torch.linalg.det(matrix))
    assert metrics.sd_log_jacobian(u, grid) == pytest.approx(0, abs=1e-9)


@pytest.mark.fault(58)
def test_mirror_folds_everywhere(grid):
    u = -2 * grid.identity(torch.zeros(1, dtype=torch.float64))[:, :1]
    u = torch.cat([u, torch.zeros(1, grid.ndim - 1, *grid.shape, dtype=torch.float64)], 1)
    found = metrics.regularity(u, grid)
    assert found["folds_percent"] == 100
    assert found["folded_cells_percent"] == 100
    assert found["ndv_percent"] == pytest.approx(100)
    assert found["folds_sum"] == pytest.approx(math.prod(grid.shape))


@pytest.mark.fault(58)
def test_central_differences_miss_a_checkerboard_and_the_simplices_do_not(grid):
    index = sum(torch.meshgrid(*[torch.arange(n) for n in grid.shape], indexing="ij"))
    board = torch.where(index % 2 == 0, 1.0, -1.0).double() * 0.8
    u = torch.stack([board * h for h in grid.spacing])[None]
    inner = (slice(None), *(slice(1, -1),) * grid.ndim)
    assert float(ops.jacobian_determinant(u, grid)[inner].min()) > 0.99
    assert metrics.non_diffeomorphic_volume(u, grid)["folded_cells_percent"] > 90


def test_inverse_consistency():
    grid = Grid((20, 20), np.diag([2.0, 2, 1]))
    assert metrics.inverse_consistency(Identity(), Identity(), grid) == 0
    shift = torch.full((1, 2, 20, 20), 0.05, dtype=torch.float64)
    assert metrics.inverse_consistency(Dense(shift, grid), Identity(), grid) == pytest.approx(0.05 * 2**0.5 * grid.length)


@pytest.mark.fault(41)
def test_hd95_is_a_distance_and_an_empty_label_no_zero(grid):
    """A block moved by three voxels along the first axis is three voxels away; a label that the map lost is inf (fault 41)."""
    fixed = torch.zeros(1, 1, *grid.shape)
    fixed[:, :, 4:10, 4:10] = 1
    fixed[:, :, 15:17, 4:7] = 2
    moved = fixed.roll(3, 2) * (fixed.roll(3, 2) == 1)
    moved[:, :, :2, 15:18] = 5
    found = metrics.hd95(moved, fixed, grid.voxel)
    assert found[1] == pytest.approx(3 * grid.voxel[0])
    assert found[2] == math.inf and math.isnan(found[5])
    out = metrics.overlap(moved, fixed, fixed, grid.voxel)
    assert out["hd95_mm"] == pytest.approx(found[1]) and out["hd95_empty"] == 1
    assert (out["dice_before"], out["dice_n_valid"]) == (1, 1)


@pytest.mark.parametrize("far", [0, 2**40])
def test_dice_of_any_labels(far):
    """Counted in one pass, or sorted where the labels lie far apart: as by comparing the maps label by label."""
    a, b = (torch.randint(-3, 9, (40, 30), generator=torch.Generator().manual_seed(k)) for k in range(2))
    a[0, 0] = b[0, 0] = far
    found = metrics.dice(a, b)
    assert set(found) == (set(a.unique().tolist()) | set(b.unique().tolist())) - {0}
    for label, value in found.items():
        p, q = a == label, b == label
        assert value == pytest.approx(2 * float((p & q).sum()) / float(p.sum() + q.sum()), rel=1e-12)
    assert math.isnan(metrics.dice(a, b, [77])[77])
