import itertools

import pytest
import torch
from conftest import blobs

from rdmm import ConfigError, DivergenceError, Grid, Image, InputError
from rdmm.similarity import LNCC, MIND, NCC, NMI, SSD, CorrelationRatio, MultiKernelLNCC

ALL = {
    "ssd": SSD(),
    "ncc": NCC(),
    "cr": CorrelationRatio(),
    "lncc": LNCC(5),
    "lncc_torch": LNCC(5, fused=False),
    "mklncc": MultiKernelLNCC((0.2, 0.5), (0.4, 0.6)),
    "nmi": NMI(16),
    "mind": MIND(),
}


def noisy(grid: Grid, channels: int = 1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = 0.2 * torch.rand(1, channels, *grid.shape, generator=generator, dtype=torch.float64)
    return torch.cat([blobs(grid, k) for k in range(channels)], 1) + noise


@pytest.mark.parametrize("name", ALL)
def test_lowest_for_identical_images(grid, name):
    a, other = noisy(grid), noisy(grid, seed=5)
    same = float(ALL[name](Image(a, grid), Image(a, grid)))
    assert same < float(ALL[name](Image(other, grid), Image(a, grid)))
    if name != "nmi":  # blurred histograms never agree wholly
        assert abs(same) < 1e-9


@pytest.mark.parametrize("name", [n for n in ALL if n != "ssd"])
@pytest.mark.parametrize("scale", [1e6, 1e-6, -3.0])
def test_invariant_to_affine_changes_of_intensity(grid, name, scale):
    a, b = noisy(grid), noisy(grid, seed=5)
    value = float(ALL[name](Image(a, grid), Image(b, grid)))
    assert float(ALL[name](Image(scale * a - 1000 * abs(scale), grid), Image(b, grid))) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_that_of_finite_differences(grid, name, masked):
    a, b = noisy(grid, 2), noisy(grid, 2, seed=5)
    mask = (noisy(grid, seed=9) > 0.2).double() if masked else None
    target, direction = Image(b, grid, mask), torch.randn_like(a)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(ALL[name](Image(a, grid), target).sum(), a)
    e = 1e-6
    with torch.no_grad():
        values = [float(ALL[name](Image(a + s * e * direction, grid), target)) for s in (1, -1)]
    numeric = (values[0] - values[1]) / (2 * e)
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_masked_voxels_do_not_count(grid, name):
    a, b = noisy(grid), noisy(grid, seed=5)
    mask = torch.ones_like(a)
    mask[..., :5] = 0
    changed = torch.where(mask > 0, b, b.flip(-1))
    values = [float(ALL[name](Image(a, grid), Image(x, grid, mask))) for x in (b, changed)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_lncc_is_the_torch_one(grid, masked, dtype):
    a, b = noisy(grid, 2), noisy(grid, 2, seed=5)
    mask = (noisy(grid, seed=9) > 0.2).to(dtype) if masked else None
    results = []
    for fused, kind in ((True, dtype), (False, torch.float64)):
        x, y = a.to(kind, copy=True).requires_grad_(), b.to(kind, copy=True).requires_grad_()
        weight = None if mask is None else mask.to(kind)
        value = MultiKernelLNCC((3, 7, 15), (0.2, 0.3, 0.5), "voxel", fused)(Image(x, grid), Image(y, grid, weight))
        results.append([t.double() for t in (value.detach(), *torch.autograd.grad(value.sum(), (x, y)))])
    for p, q in zip(*results, strict=True):
        assert torch.allclose(p, q, rtol=0, atol=(2e-4 if dtype == torch.float32 else 1e-10) * float(q.abs().max()))


@pytest.mark.parametrize("shape", [(9, 8), (7, 6, 5)])
def test_lncc_by_its_definition(shape):
    """The mean over voxels of the squared correlation in the window, cut at the edges, on an image with texture everywhere."""
    grid = Grid.unit(shape)
    a, b = torch.rand(2, 1, 1, *shape, dtype=torch.float64)
    total = 0.0
    for index in itertools.product(*(range(n) for n in shape)):
        window = (0, 0, *(slice(max(0, i - 1), i + 2) for i in index))
        total += float(torch.corrcoef(torch.stack([a[window].flatten(), b[window].flatten()]))[0, 1] ** 2)
    expected = 1 - total / a.numel()
    assert float(LNCC(3)(Image(a, grid), Image(b, grid))) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name", ALL)
def test_flat_regions_and_constant_images_have_finite_gradients(grid, name):
    a = torch.zeros(1, 1, *grid.shape, dtype=torch.float64)
    b = blobs(grid)
    half = b.clone()
    half[..., : grid.shape[-1] // 2] = 0
    for x, y in ((a, b), (b, a), (a, a), (half, b)):
        moved = x.clone().requires_grad_()
        value = ALL[name](Image(moved, grid), Image(y, grid))
        (gradient,) = torch.autograd.grad(value.sum(), moved)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


def test_batches_are_independent(grid):
    a, b = torch.cat([noisy(grid), noisy(grid, seed=3)]), noisy(grid, seed=5)
    for similarity in ALL.values():
        both = similarity(Image(a, grid), Image(b.expand(2, -1, *(-1,) * grid.ndim), grid))
        alone = [similarity(Image(a[i : i + 1], grid), Image(b, grid)) for i in range(2)]
        assert torch.allclose(both, torch.cat(alone))


def test_disjoint_masks_are_a_divergence(grid):
    a = noisy(grid)
    left, right = torch.zeros_like(a), torch.zeros_like(a)
    left[..., :4], right[..., 4:] = 1, 1
    with pytest.raises(DivergenceError, match="overlap"):
        SSD()(Image(a, grid, left), Image(a, grid, right))


def test_wrong_settings():
    with pytest.raises(ConfigError, match="odd"):
        LNCC(4)
    with pytest.raises(ConfigError, match="larger than the image"):
        LNCC(99)(Image(torch.rand(1, 1, 20, 20), Grid.unit((20, 20))), Image(torch.rand(1, 1, 20, 20), Grid.unit((20, 20))))
    with pytest.raises(ConfigError, match="one weight per window"):
        MultiKernelLNCC((3, 5), (1.0,), "voxel")
    with pytest.raises(ConfigError):
        NMI(2)
    with pytest.raises(InputError, match="one shape"):
        SSD()(Image(torch.rand(1, 1, 20, 20), Grid.unit((20, 20))), Image(torch.rand(1, 1, 20, 21), Grid.unit((20, 21))))


def test_autocast_leaves_the_value(grid):
    a, b = noisy(grid).float(), noisy(grid, seed=5).float()
    for similarity in ALL.values():
        value = float(similarity(Image(a, grid), Image(b, grid)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert float(similarity(Image(a, grid), Image(b, grid))) == pytest.approx(value, abs=1e-3)


def test_the_window_of_lncc_has_enough_voxels_in_slices_and_in_volumes():
    """Without a side: 7 in slices, 3 in volumes, and no error where a pyramid's coarsest slice is smaller than that."""
    for shape, window in (((20, 24), 7), ((12, 10, 11), 3), ((3, 3), 5), ((2, 2), 3)):
        a, b = (Image(torch.rand(1, 1, *shape, generator=torch.manual_seed(i)), Grid.unit(shape)) for i in (0, 1))
        assert torch.equal(LNCC()(a, b), LNCC(window)(a, b))
        assert shape == (2, 2) or not torch.equal(LNCC()(a, b), LNCC(window + 2 if window == 3 else window - 2)(a, b))
