"""The laws of MIND-SSC, model (51). Those that every similarity obeys are in test_similarity.py."""

import itertools

import pytest
import torch
from conftest import blobs

from rdmm import ConfigError, Grid, Image
from rdmm.similarity import MIND
from rdmm.similarity.mind import KAPPA, SCALE, descriptor, neighbor_pairs

SETTINGS = [(1, 1), (1, 2), (2, 2)]


def noisy(grid: Grid, channels: int = 1, seed: int = 1) -> torch.Tensor:
    noise = torch.rand(1, channels, *grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([blobs(grid, k) for k in range(channels)], 1) + 0.2 * noise


def by_definition(x: torch.Tensor, radius: int, dilation: int) -> torch.Tensor:
    """(channels, *s) voxel by voxel, patch by patch; beyond the edges the last voxel is repeated."""

    def at(p):
        return float(x[tuple(min(max(i, 0), n - 1) for i, n in zip(p, x.shape, strict=True))])

    pairs = neighbor_pairs(x.ndim, dilation)
    out = torch.zeros(len(pairs), *x.shape, dtype=torch.float64)
    for p in itertools.product(*map(range, x.shape)):
        for k, (s, t) in enumerate(pairs):
            patch = list(itertools.product(*(range(i - radius, i + radius + 1) for i in p)))
            squares = [
                (at([i + j for i, j in zip(q, s, strict=True)]) - at([i + j for i, j in zip(q, t, strict=True)])) ** 2 for q in patch
            ]
            out[(k, *p)] = sum(squares) / len(squares)
    out -= out.amin(0)
    return torch.exp(-out / (out.mean(0) + KAPPA * x.var(correction=0)))


def test_the_neighbors_are_those_of_the_paper():
    """12 pairs of the 6 neighbors, whose distance is sqrt(2); in slices 4 pairs of 4."""
    for ndim, number in ((2, 4), (3, 12)):
        pairs = neighbor_pairs(ndim, 1)
        assert len({frozenset(p) for p in pairs}) == len(pairs) == number
        assert all(sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) == 2 for s, t in pairs)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 3)])
@pytest.mark.parametrize("fused", [True, False])
def test_mind_by_its_definition(shape, fused):
    grid = Grid.unit(shape)
    a, b = torch.rand(2, 1, 1, *shape, dtype=torch.float64, generator=torch.manual_seed(1))
    expected = SCALE * float(((by_definition(a[0, 0], 1, 2) - by_definition(b[0, 0], 1, 2)) ** 2).mean())
    x, y = (Image(v.float() if fused else v, grid) for v in (a, b))
    assert float(MIND(1, 2, fused=fused)(x, y)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("radius", "dilation"), SETTINGS)
def test_the_kernel_is_the_torch_one(grid, masked, radius, dilation):
    a, b = noisy(grid, 2), noisy(grid, 2, seed=5)
    mask = (noisy(grid, seed=9) > 0.2).double() if masked else None
    results = []
    for fused, dtype in ((True, torch.float32), (False, torch.float64)):
        x, y = (v.to(dtype, copy=True).requires_grad_() for v in (a, b))
        weight = None if mask is None else mask.to(dtype)
        value = MIND(radius, dilation, fused)(Image(x, grid, weight), Image(y, grid, weight))
        results.append([t.double() for t in (value.detach(), *torch.autograd.grad(value.sum(), (x, y)))])
    for p, q in zip(*results, strict=True):
        assert torch.allclose(p, q, rtol=0, atol=2e-4 * float(q.abs().max()))


def test_other_contrasts_hardly_count(grid):
    """Inverted: not at all. A smooth monotone curve: a small part of what another image makes."""
    a, b, other = (v.float() for v in (noisy(grid), noisy(grid), noisy(grid, seed=5)))
    different = float(MIND()(Image(other, grid), Image(b, grid)))
    assert float(MIND()(Image(1 - 2 * a, grid), Image(b, grid))) < 1e-6 * different
    for curve in (torch.log1p, torch.exp, lambda v: 1 / (1 + v)):
        assert float(MIND()(Image(curve(a), grid), Image(b, grid))) < 0.15 * different


def test_both_images_count_alike(grid):
    a, b = (Image(noisy(grid, seed=s).float(), grid) for s in (1, 5))
    assert float(MIND()(a, b)) == pytest.approx(float(MIND()(b, a)), rel=1e-6)


def test_the_descriptor_moves_with_the_image():
    """A translation by whole voxels, away from the edges."""
    x = noisy(Grid.unit((16, 14, 12)))
    floor = torch.full((1, 1), 1e-3, dtype=x.dtype)
    m, moved = (descriptor(v, floor, 1, 2) for v in (x, x.roll((2, -1, 1), (2, 3, 4))))
    assert torch.equal(m.roll((2, -1, 1), (3, 4, 5))[..., 2:-2, 2:-2, 2:-2], moved[..., 2:-2, 2:-2, 2:-2])


def test_thin_images_have_values():
    """Fewer voxels than the patch: the edges are repeated."""
    for shape in ((12, 10, 2), (3, 2), (2, 2, 2)):
        grid = Grid.unit(shape)
        x, y = torch.rand(2, 1, 1, *shape, generator=torch.manual_seed(2)).requires_grad_()
        value = MIND()(Image(x, grid), Image(y, grid))
        assert torch.isfinite(torch.autograd.grad(value.sum(), x)[0]).all()


@pytest.mark.parametrize("settings", [{"radius": 0}, {"dilation": 0}, {"radius": 1.5}])
def test_wrong_settings(settings):
    with pytest.raises(ConfigError, match="whole number"):
        MIND(**settings)
