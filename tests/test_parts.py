"""Images of several parts: contrasts with weights, and labels as codes of a few channels."""

import numpy as np
import pytest
import torch
from conftest import blobs

from rdmm import Image
from rdmm.similarity import LNCC, NCC, NMI, SSD
from rdmm.similarity.parts import compare, label_mismatch
from rdmm.spatial.image import Part, joined
from rdmm.spatial.label_codes import code_vectors, encoded, shared_labels
from rdmm.spatial.transform import Affine

SIMILARITIES = [SSD(), NCC(), LNCC(3), NMI()]


def images(grid, seeds):
    return [Image(blobs(grid, s), grid) for s in seeds]


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda s: type(s).__name__)
def test_every_similarity_is_the_weighted_mean_over_the_parts(grid, similarity):
    fixed, moving = images(grid, (0, 1, 2)), images(grid, (3, 4, 5))
    parts = (Part(1), Part(1, 0.5), Part(1, 2.0))
    value = compare(similarity, joined(moving, parts), joined(fixed, parts))
    each = [similarity(m, f) for m, f in zip(moving, fixed, strict=True)]
    assert torch.allclose(value, (each[0] + 0.5 * each[1] + 2 * each[2]) / 3.5, rtol=1e-12)


def test_a_part_has_its_own_mask_and_what_it_excludes_has_no_influence(grid):
    fixed, moving = images(grid, (0, 1)), images(grid, (3, 4))
    mask = torch.ones_like(fixed[1].data)
    mask[:, :, :9] = 0
    parts = (Part(1), Part(1))
    values = []
    for change in (0.0, 50.0):
        second = Image(torch.where(mask > 0, fixed[1].data, change), grid, mask)
        target = joined([fixed[0], second], parts)
        assert target.mask is not None and target.mask.shape[1] == 2
        for x in (target, target.scaled(0.5)):
            y = joined(moving, parts) if x is target else joined(moving, parts).scaled(0.5)
            values.append(compare(SSD(), y, x))
    assert torch.equal(values[0], values[2]) and torch.equal(values[1], values[3])
    assert torch.allclose(values[0], (SSD()(moving[0], fixed[0]) + SSD()(moving[1], Image(fixed[1].data, grid, mask))) / 2)


def test_parts_travel_with_the_image(grid):
    image = joined(images(grid, (0, 1)), (Part(1), Part(1, 0.5)))
    for x in (image.scaled(0.5), image.to(torch.device("cpu")), image.to_float32(), image.canonical(), image.inpainted()):
        assert x.parts == image.parts
    moved = image.moved_by(Affine(torch.eye(grid.ndim + 1, dtype=torch.float64)))
    assert moved.parts == image.parts and len(moved.split()) == 2


@pytest.mark.parametrize("count", [1, 3, 8, 9, 40, 300])
def test_codes_are_unit_vectors_far_apart(count):
    """Up to eight labels have a channel each; many share eight channels, and no two are alike."""
    codes = code_vectors(count)
    assert codes.shape == (count, min(count, 8))
    cosines = codes @ codes.T
    assert np.allclose(np.diag(cosines), 1)
    assert np.max(cosines - 2 * np.eye(count)) < {1: 0, 3: 1e-9, 8: 1e-9, 9: 1e-9, 40: 0.55, 300: 0.8}[count] + 1e-12
    assert np.array_equal(codes, code_vectors(count))


def test_labels_that_only_one_map_has_are_outside_the_mask(grid):
    data = torch.zeros(1, 1, *grid.shape, dtype=torch.int64)
    data[0, 0, :5], data[0, 0, 5:9], data[0, 0, 9:12] = 2**40, 7, -3
    labels = Image(data, grid)
    other = Image(torch.where(data == 7, 0, data), grid)
    assert shared_labels(labels, other) == ([-3, 2**40], [7])
    codes = encoded(labels, [-3, 2**40])
    assert codes.mask is not None and torch.equal(codes.mask == 0, data == 7)
    assert torch.equal(codes.data.square().sum(1, keepdim=True), ((data == -3) | (data == 2**40)).float())
    assert encoded(other, [-3, 2**40]).mask is None


def test_the_mismatch_is_one_minus_dice(grid):
    a, b = (blobs(grid, s) > 0.4 for s in (0, 1))
    dice = 2 * float((a & b).sum()) / float(a.sum() + b.sum())
    both = [encoded(Image(x.long(), grid), [1]) for x in (a, b)]
    assert float(label_mismatch(*both)) == pytest.approx(1 - dice, abs=1e-6)
    assert float(label_mismatch(both[0], both[0])) == 0
    part = (Part(1, 3.0, is_labels=True),)
    assert float(compare(SSD(), *(joined([x], part) for x in both))) == pytest.approx(3 * (1 - dice), abs=1e-5)
    assert joined([both[0]], part).mass().sum() == a.sum()
