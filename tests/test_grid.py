import weakref

import numpy as np
import pytest
import torch
from conftest import oblique

from rdmm import Grid, Image, InputError
from rdmm.spatial.transform import Affine, Composed, Dense, Identity, Placed, displacement, framed, invert, split


def test_longest_edge_is_one(grid):
    assert max(grid.extent) == pytest.approx(1)
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    assert x.shape == (1, grid.ndim, *grid.shape)


def test_spacing_is_isotropic_in_millimeters():
    grid = oblique((20, 30, 10), (1.0, 2.0, 5.0))
    ratio = np.array(grid.spacing) / np.array(grid.voxel)
    assert np.allclose(ratio, ratio[0])


def test_unit_grid_is_the_papers_domain():
    grid = Grid.unit((11, 21))
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    assert grid.spacing == pytest.approx((0.1, 0.05))
    assert float(x.max()) == pytest.approx(1)


@pytest.mark.parametrize("flip", [False, True])
def test_world_and_back(flip):
    grid = oblique((9, 8, 7), (1.0, 2.0, 3.0), flip=flip)
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    index = torch.tensor([[3.0, 2, 5]], dtype=torch.float64)[..., None]
    world = grid.to_world(index * torch.tensor(grid.spacing, dtype=torch.float64).view(1, 3, 1))
    expected = (np.asarray(grid.affine) @ [3, 2, 5, 1])[:3]
    assert np.allclose(world[0, :, 0], expected)
    assert torch.allclose(grid.from_world(grid.to_world(x)), x)


def test_scaled_keeps_the_frame(grid):
    small = grid.scaled(0.5)
    assert small.same_frame(grid)
    assert small.extent == pytest.approx(grid.extent)


def test_levels_of_an_anisotropic_grid_grow_isotropic():
    grid = Grid((64, 64, 16), np.diag([1.0, 1, 4, 1]))
    assert grid.scaled(0.5).shape[2] == 16
    assert max(grid.scaled(0.25).voxel) / min(grid.scaled(0.25).voxel) < 1.1


@pytest.mark.parametrize("affine", [np.diag([1.0, 0, 1]), np.full((3, 3), np.nan), np.eye(4)])
def test_bad_affines(affine):
    with pytest.raises(InputError):
        Grid((5, 5), affine)


def test_an_affine_pulls_back_through_the_world():
    fixed, moving = oblique((20, 22, 12), (1.0, 1, 2)), oblique((26, 20, 18), (1.2, 1, 1.5), angle=-0.2, flip=True)
    matrix = np.eye(4)
    matrix[:3, 3] = [2.0, -1, 0.5]
    image = Image(moving.to_world(moving.identity(torch.zeros(1, dtype=torch.float64)))[:, :1], moving)  # value = world x
    moved = image.moved_by(Affine.from_world(matrix, fixed), fixed)
    expected = fixed.to_world(fixed.identity(torch.zeros(1, dtype=torch.float64)))[:, :1] + 2.0
    inside = (expected > float(image.data.min())) & (expected < float(image.data.max()))
    y = moving.from_world(
        fixed.to_world(fixed.identity(torch.zeros(1, dtype=torch.float64))) + torch.tensor([2.0, -1, 0.5]).view(1, 3, 1, 1, 1)
    )
    for i in range(3):
        inside &= ((y[:, i] > 0) & (y[:, i] < moving.extent[i])).unsqueeze(1)
    assert inside.any()
    assert torch.allclose(moved.data[inside], expected[inside])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
def test_canonical_order_does_not_depend_on_storage(order, flips):
    grid = oblique((6, 5, 4), (1.0, 2.0, 3.0))
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for j, i in enumerate(order):
        change[i, j] = -1 if j in flips else 1
        change[i, 3] += grid.shape[i] - 1 if j in flips else 0
    stored = Grid(tuple(grid.shape[i] for i in order), np.asarray(grid.affine) @ change)
    image = Image(torch.randn(1, 1, *grid.shape), grid)
    other = Image(grid.restored(image.data, stored), stored)
    assert np.allclose(other.canonical().grid.affine, image.canonical().grid.affine)
    assert torch.equal(other.canonical().data, image.canonical().data)
    assert torch.equal(other.canonical().grid.restored(other.canonical().data, stored), other.data)


def test_placed_and_framed_are_inverse_to_each_other(grid):
    u = 0.01 * torch.randn(1, grid.ndim, *grid.shape, dtype=torch.float64)
    dense = Dense(u, grid)
    again = framed(Placed(dense, grid), grid)
    x = grid.identity(u)
    assert torch.allclose(again(x), dense(x))


def test_split_takes_the_affine_out():
    grid = Grid.unit((8, 8))
    dense, affine = Dense(torch.zeros(1, 2, 8, 8), grid), Affine(torch.diag(torch.tensor([2.0, 1, 1])))
    deformation, last = split(Composed(dense, affine))
    assert deformation is dense
    assert last is not None
    assert torch.equal(last.matrix, affine.matrix)
    assert split(Identity()) == (Identity(), None)


def test_invert(grid):
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    u = (
        0.04
        * torch.sin(6 * x.flip(1))
        * (x * (torch.tensor(grid.extent).view(1, -1, *(1,) * grid.ndim) - x)).prod(1, keepdim=True).sqrt()
        * 4
    )
    w, residual = invert(u, grid)
    assert residual < 1e-4
    assert float((Dense(u, grid)(Dense(w, grid)(x)) - x).abs().max()) < 1e-4 * max(grid.spacing) * 2
    assert torch.equal(displacement(Identity(), grid, x), torch.zeros_like(x))


def test_coordinates_of_a_small_grid_are_one_tensor(grid):
    """By which a displacement knows its own voxels, and is looked up there without interpolation."""
    like = torch.zeros(1, dtype=torch.float64)
    x = grid.identity(like)
    assert x is grid.identity(like)
    assert x is not grid.identity(like.float())
    torch.manual_seed(0)
    u = torch.randn(2, grid.ndim, *grid.shape, dtype=torch.float64)
    at_voxels = Dense(u, grid)(x)
    assert torch.equal(at_voxels, x + u)
    assert torch.allclose(at_voxels, Dense(u, grid)(x.clone()), atol=1e-12)
    assert grid.is_identity(x) and not grid.is_identity(x.clone())


def test_coordinates_of_a_large_grid_are_one_tensor_in_use():
    """Or else every evaluation at 1 mm interpolates the displacement at its own voxels."""
    like, large = torch.zeros(1), Grid.unit((2048, 1024))
    x = large.identity(like)
    assert large.identity(like) is x and large.is_identity(x)
    kept = weakref.ref(x)
    del x
    assert kept() is None


def test_coordinates_in_use_are_recognized_after_the_cache_has_dropped_them(grid):
    """Whether a displacement is interpolated must not depend on how many other grids were used meanwhile."""
    like = torch.zeros(1, dtype=torch.float64)
    x = grid.identity(like)
    for n in range(40):
        Grid.unit((8, 9 + n)).identity(like)
    assert grid.is_identity(x) and grid.identity(like) is x
