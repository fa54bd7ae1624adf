"""The largest organ by intensities: vessels belong to it, thin bridges to others do not."""

import numpy as np
import pytest
import torch

from rdmm import Grid, Image, InputError
from rdmm.data.studies.organ import largest_organ

AFFINE = np.diag([2.5, 2.5, 5.0, 1.0])
SHAPE = (64, 60, 22)


def test_the_largest_organ_is_found_by_its_intensities():
    """An ellipsoid with vessels, a smaller organ beside it, a bright wall, and noise; no point of the region is given."""
    rng = np.random.default_rng(0)
    x = np.stack(np.meshgrid(*(np.arange(n) * v for n, v in zip(SHAPE, (2.5, 2.5, 5.0), strict=True)), indexing="ij"))

    def ball(center, radii):
        return sum(((a - c) / r) ** 2 for a, c, r in zip(x, center, radii, strict=True)) < 1

    organ, other = ball((90, 80, 55), (42, 38, 40)), ball((90, 138, 55), (20, 20, 30))
    values = 5 + 90.0 * organ + 95.0 * (other & ~organ) + 200.0 * (x[0] > 150)
    values[ball((80, 75, 55), (30, 4, 6))] = 180  # a vessel
    image = Image(torch.from_numpy(values + 6 * rng.standard_normal(SHAPE)).float()[None, None], Grid(SHAPE, AFFINE))
    found = largest_organ(image).data[0, 0].numpy() > 0
    assert (found & organ).sum() / organ.sum() > 0.95
    assert (found & ~organ).sum() / organ.sum() < 0.08
    assert found[32, 30, 11]  # in the vessel


def test_an_image_without_an_organ():
    with pytest.raises(InputError, match="no organ"):
        largest_organ(Image(torch.zeros(1, 1, 24, 24, 8), Grid((24, 24, 8), np.diag([9.0, 9.0, 9.0, 1.0]))))
