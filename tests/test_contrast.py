"""Images of two contrasts are brought to one, model (53); those of one contrast stay as they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import blobs

import rdmm
from rdmm import Grid, Image
from rdmm.dynamics import SVF
from rdmm.dynamics.base import InitialConditions
from rdmm.optim import Problem
from rdmm.optim.contrast import conditional_mean, explained_by_a_line, match_contrast
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.similarity import LNCC, MIND, NCC, NMI, SSD, GridSinkhorn, MultiKernelLNCC, Sum
from rdmm.spatial.image import Part
from rdmm.spatial.pair import Pair


def t2_like(x: torch.Tensor) -> torch.Tensor:
    """A smooth curve that rises and falls."""
    return torch.sin(torch.pi * x**0.8)


def image(grid: Grid, curve=None, mask: torch.Tensor | None = None) -> Image:
    x = blobs(grid).float()
    return Image(x if curve is None else curve(x), grid, mask)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return explained_by_a_line(*(x.double().numpy().ravel() for x in (a, b)), np.ones(a.numel()))


def test_the_conditional_mean_is_the_curve_between_two_images():
    """Where y is a function of x it is this function, up to the width of the bins; noise in y does not count."""
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 2, 20_000)
    curve = conditional_mean(x, np.sin(2 * x) + generator.normal(0, 0.2, x.size), np.ones_like(x))
    inside = np.linspace(0.1, 1.9, 50)
    assert np.allclose(curve(inside), np.sin(2 * inside), atol=0.03)
    assert curve(np.array([9.0])) == curve(np.array([2.0]))


@pytest.mark.parametrize("curve", [lambda x: x, lambda x: 3 - 2 * x, lambda x: 0 * x, lambda x: x + 0.1 * x**2])
def test_one_contrast_stays_as_it_is(grid, curve):
    """A linear relation, inverted too, and one that is nearly linear; and a constant image, which has none."""
    pair = Pair(image(grid), image(grid, curve))
    assert match_contrast(pair, pair.moving) is pair


def mapped(fixed: Image, moving: Image) -> tuple[torch.Tensor, torch.Tensor]:
    """The part in one contrast of two aligned images, which comes after the part that is as given."""
    pair = match_contrast(Pair(fixed, moving), moving)
    assert [p.weight for p in pair.fixed.parts] == [0.5, 0.5]
    assert torch.equal(pair.fixed.data[:, :1], fixed.data) and torch.equal(pair.moving.data[:, :1], moving.data)
    return pair.fixed.data[:, 1:], pair.moving.data[:, 1:]


def test_the_image_that_the_curve_explains_better_is_mapped(grid):
    """E[T2 | T1] is a function, E[T1 | T2] is not: so T1 is mapped, be it fixed or moving."""
    t1, t2 = image(grid), image(grid, t2_like)
    assert correlation(t1.data, t2.data) < 0.8
    for fixed, moving, one in ((t1, t2, 0), (t2, t1, 1)):
        found = mapped(fixed, moving)
        assert torch.equal(found[1 - one], t2.data) and correlation(found[one], t2.data) > 0.94


def test_values_outside_the_masks_do_not_change_the_curve(grid):
    mask = torch.ones(1, 1, *grid.shape)
    mask[..., :6] = 0
    t1, t2 = image(grid, mask=mask), image(grid, t2_like)
    other = replace(t2, data=torch.where(mask > 0, t2.data, 7.0))
    a, b = (mapped(t1, x)[0] for x in (t2, other))
    assert torch.equal(a, b) and not torch.equal(a, t1.data)


def test_codes_of_labels_and_parts_of_one_contrast_stay(grid):
    x, y = image(grid).data, image(grid, t2_like).data
    parts = (Part(1), Part(1, 3.0), Part(1, is_labels=True))
    fixed, moving = (Image(torch.cat(channels, 1), grid, parts=parts) for channels in ((x, x, x), (1 - x, y, y)))
    found = match_contrast(Pair(fixed, moving), moving)
    assert found.fixed.parts == found.moving.parts == (parts[0], Part(1, 1.5), Part(1, 1.5), parts[2])
    assert [torch.equal(found.fixed.data[:, k], x[:, 0]) for k in range(4)] == [True, True, False, True]
    assert torch.equal(found.moving.data, moving.data[:, [0, 1, 1, 2]])


SETTINGS = {"affine": "none", "optimizer__scales": [0.5, 1.0], "optimizer__iterations": [20, 10]}


def shifted_pair(curve=None) -> tuple[Image, Image]:
    """The moving image is the fixed one, deformed, in another contrast."""
    grid = Grid.unit((48, 44))
    x = grid.identity(torch.zeros(1))
    bend = 0.05 * torch.sin(torch.pi * x[:, :1]) * torch.sin(torch.pi * x[:, 1:])
    points = x + torch.cat([bend, -bend], 1)
    fixed = image(grid)
    moving = rdmm.spatial.ops.sample(fixed.data, points, grid)
    return fixed, Image(moving if curve is None else curve(moving), grid)


def error(found: rdmm.Registration, fixed: Image, moving_plain: Image) -> float:
    """Difference of the fixed image and the moving one of its own contrast, warped by the map that was found."""
    return float((moving_plain.moved_by(found.result.transform).data - fixed.data).abs().mean())


def test_another_contrast_is_registered_as_well_as_its_own():
    fixed, plain = shifted_pair()
    _, other = shifted_pair(t2_like)
    own = error(rdmm.register(fixed=fixed, moving=plain, **SETTINGS), fixed, plain)
    matched = error(rdmm.register(fixed=fixed, moving=other, **SETTINGS), fixed, plain)
    unmatched = error(rdmm.register(fixed=fixed, moving=other, **SETTINGS, optimizer__match_contrast=False), fixed, plain)
    before = float((plain.data - fixed.data).abs().mean())
    assert matched < own + 0.2 * before  # the images are compared as they are, too, and blobs have few intensities that a line relates
    assert matched < unmatched


def test_other_similarities_see_the_images_as_they_are():
    """SSD compares the intensities themselves; NMI and MIND need no match."""
    fixed, other = shifted_pair(t2_like)
    pair, start = Pair(fixed, other), InitialConditions(torch.zeros(1, 2, *fixed.grid.shape))

    def is_matched(similarity) -> bool:
        return Problem(SVF(MultiGaussian([0.2], [1.0])), similarity).with_matched_contrast(start, pair) is not pair

    assert all(is_matched(x) for x in (LNCC(), MultiKernelLNCC(), NCC()))
    assert not any(is_matched(x) for x in (SSD(), NMI(), MIND(), Sum({"lncc": LNCC(), "sinkhorn": GridSinkhorn()}, {})))
