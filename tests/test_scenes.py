"""Synthetic scenes have the same topology in both images: only then can a diffeomorphism solve them."""

import numpy as np
import pytest
from scipy import ndimage

from rdmm.data.synthetic.scenes import FOREGROUND, INSIDE, OUTSIDE, shapes_pair


def topology(labels):
    """The number of connected pieces of each label, and the pairs of labels that touch, corners included."""
    box = np.ones((3,) * labels.ndim)
    pieces = {k: ndimage.label(labels == k, box)[1] for k in np.unique(labels).tolist()}
    touching = set()
    for k in pieces:
        around = ndimage.binary_dilation(labels == k, box) & (labels != k)
        touching |= {(k, other) for other in np.unique(labels[around]).tolist()}
    return pieces, touching


@pytest.mark.parametrize("variation", ["own", "together"])
@pytest.mark.parametrize(("shape", "seeds"), [((80, 80), range(40)), ((56, 56, 56), range(2))])
def test_both_images_have_the_topology_that_was_drawn(shape, seeds, variation):
    """Each object is one piece. The inner ones touch the foreground alone, the foreground and the outer ones the background."""
    for seed in seeds:
        _, fixed, moving = shapes_pair(seed, shape, variation)
        outer = {k for k in fixed.unique().tolist() if k >= OUTSIDE}
        pieces = dict.fromkeys({0, FOREGROUND, INSIDE, INSIDE + 1} | outer, 1)
        pairs = {(FOREGROUND, INSIDE), (FOREGROUND, INSIDE + 1), (0, FOREGROUND)} | {(0, k) for k in outer}
        expected = pieces, pairs | {(b, a) for a, b in pairs}
        for labels in (fixed, moving):
            assert topology(labels[0, 0].numpy()) == expected, seed
