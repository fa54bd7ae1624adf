"""Measures without windows, and affine sampling: the compiled kernels do what their twins in torch do, to rounding."""

import numpy as np
import pytest
import torch
from conftest import blobs

from rdmm import DivergenceError, Grid, Image
from rdmm.kernels.available import set_threads
from rdmm.kernels.pointwise.affine_sampling import sample_affinely
from rdmm.kernels.sampling import sample
from rdmm.similarity import NCC, NMI, CorrelationRatio
from rdmm.spatial.transform import Affine

MEASURES = {
    "ncc": lambda fused: NCC(fused),
    "nmi": lambda fused: NMI(16, fused),
    "cr": lambda fused: CorrelationRatio(fused=fused),
    "cr5": lambda fused: CorrelationRatio(5, fused),
}


def images(grid, dtype=torch.float64, channels=2):
    """Two batches of images that agree in part, not standardized, and a mask."""
    generator = torch.Generator().manual_seed(4)
    a = torch.cat([blobs(grid, k).double() for k in range(2 * channels)], 1).view(2, channels, *grid.shape)
    a = a + 0.3 * torch.rand(a.shape, generator=generator, dtype=torch.float64)
    b = 5 - torch.sin(2 * a) + 0.2 * torch.rand(a.shape, generator=generator, dtype=torch.float64)
    mask = (torch.rand(2, 1, *grid.shape, generator=generator) - 0.2).clamp(0, 1)
    return a.to(dtype), b.to(dtype), mask.to(dtype)


def value_and_gradients(measure, grid, a, b, mask):
    a, b = (x.clone().requires_grad_() for x in (a, b))
    value = measure(Image(a, grid), Image(b, grid, mask))
    return [value.detach(), *torch.autograd.grad((value * torch.tensor([1.0, -2.0]).to(value)).sum(), (a, b))]


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_measures_are_their_twins(grid, name, dtype):
    a, b, mask = images(grid, dtype)
    for m in (None, mask):
        fused = value_and_gradients(MEASURES[name](True), grid, a, b, m)
        exact = value_and_gradients(MEASURES[name](False), grid, a.double(), b.double(), None if m is None else m.double())
        for x, y in zip(fused, exact, strict=True):
            assert x.dtype == dtype
            assert float((x - y).abs().max()) < (1e-9 if dtype == torch.float64 else 1e-4) * float(y.abs().max())


def test_a_batch_of_one_is_compared_with_each_of_another(grid):
    a, b, mask = images(grid)
    for measure in (MEASURES["ncc"], MEASURES["cr"]):
        both = [measure(fused)(Image(a[:1], grid), Image(b, grid, mask[:1])) for fused in (True, False)]
        assert both[0].shape == (2,) and torch.allclose(*both)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_images_of_few_intensities(grid, offset):
    """Their powers depend on each other, and a constant image has no variance at all, at any offset."""
    x = (blobs(grid) > 0.5).double() + offset
    for measure in MEASURES.values():
        for a, b in ((x, 2 - x), (x, x * 0 + 0.3 + offset), (x * 0 + 0.1 + offset, x)):
            fused, exact = (
                value_and_gradients(measure(f), grid, *(y.expand(2, -1, *grid.shape) for y in (a, b)), None) for f in (True, False)
            )
            assert torch.allclose(fused[0], exact[0], atol=1e-5)
            assert all(torch.isfinite(g).all() for g in fused)


def index_matrix(grid, moving):
    """A map between voxel indices that shears, turns, and leaves the image in part."""
    d = grid.ndim
    matrix = torch.eye(d + 1, dtype=torch.float64)
    matrix[:d, :d] += 0.15 * torch.randn(d, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    matrix[:d, :d] *= (torch.tensor(moving.shape) / torch.tensor(grid.shape)).double()[:, None]
    matrix[:d, d] = torch.tensor([1.3, -0.7, 0.4][:d])
    return matrix


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_affine_sampling_is_that_of_images(grid, masked, aligned):
    """``aligned``: every point is the center of a voxel, where slopes are the mean of both sides."""
    moving = grid if aligned else Grid(tuple(n + 2 for n in grid.shape), np.diag([*(1.0, 1.2, 0.9)[: grid.ndim], 1.0]))
    m = torch.eye(grid.ndim + 1, dtype=torch.float64) if aligned else index_matrix(grid, moving)
    a, _, mask = images(moving)
    mask = mask if masked else None
    direction = torch.randn(2, 2, *grid.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def by_images(m):
        to_world = torch.as_tensor(np.asarray(moving.affine)) @ m @ torch.linalg.inv(torch.as_tensor(np.asarray(grid.affine)))
        frame = torch.as_tensor(grid.frame)
        seen = torch.ones_like(a[:, :1]) if mask is None else mask
        moved = Image(a, moving, seen).moved_by(Affine(torch.linalg.inv(frame) @ to_world @ frame), grid)
        return moved.data, moved.mask

    results = []
    for take in (by_images, lambda m: sample_affinely(a, mask, m, grid.shape)):
        x = m.clone().requires_grad_()
        data, weight = take(x)
        results.append((data.detach(), weight, torch.autograd.grad((data * direction).sum(), x)[0][:-1]))
    for p, q in zip(*results, strict=True):
        assert float((p - q).abs().max()) < 1e-5 * max(1.0, float(p.abs().max()))
    assert 0.2 < float(results[0][1].mean()) <= 1


def test_a_point_next_to_the_first_voxel_is_not_inside():
    """It is taken to be that voxel's center, whose slope would be the mean of both sides: there is only one."""
    values = torch.arange(25.0, dtype=torch.float64).view(1, 1, 5, 5) ** 2
    points = torch.tensor([[1e-9], [2.0]], dtype=torch.float64)[None].requires_grad_()
    (by_points,) = torch.autograd.grad(sample(values, points, (1.0, 1.0)).sum(), points)
    m = torch.tensor([[1, 0, 1e-9], [0, 1, 2], [0, 0, 1]], dtype=torch.float64, requires_grad=True)
    (by_matrix,) = torch.autograd.grad(sample_affinely(values, None, m, (1, 1))[0].sum(), m)
    assert float(by_points[0, 0, 0]) == float(by_matrix[0, 2]) == 0
    assert float(by_points[0, 1, 0]) == float(by_matrix[1, 2]) == 4


def test_a_matrix_that_is_not_finite_is_a_divergence():
    with pytest.raises(DivergenceError, match="not finite"):
        sample_affinely(torch.rand(1, 1, 5, 5), None, torch.full((3, 3), float("nan"), dtype=torch.float64), (4, 4))


def test_two_threads_give_the_same_bits():
    grid = Grid.unit((41, 40, 39))
    a, b, mask = images(grid, torch.float32, 1)
    found = []
    for threads in (1, 2):
        set_threads(threads)
        bits = [x for measure in MEASURES.values() for x in value_and_gradients(measure(True), grid, a, b, mask)]
        m = index_matrix(grid, grid).requires_grad_()
        data, weight = sample_affinely(a, mask, m, grid.shape)
        found.append([*bits, data.detach(), weight, *torch.autograd.grad((data * b).sum(), m)])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
