"""Synthetic scenes can be solved by a diffeomorphism: they have the same topology in both images, or their true map is known."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from rdmm import ConfigError, Grid
from rdmm.data import StrainScenes
from rdmm.data.synthetic.scenes import FOREGROUND, INSIDE, OUTSIDE, shapes_pair
from rdmm.data.synthetic.strain import strain, strain_scene
from rdmm.metrics import dice
from rdmm.similarity import SSD
from rdmm.spatial import ops
from rdmm.spatial.transform import Dense, Identity


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


@pytest.mark.parametrize(("shape", "seeds"), [((96, 96), (0, 1, 2)), ((48, 48, 48), (3,))])
def test_one_organ_is_strained_and_the_rest_moves_rigidly(shape, seeds):
    for seed in seeds:
        scene = strain_scene(seed, shape)
        u, grid = scene.truth.displacement, scene.pair.fixed.grid
        found, organ, rest = strain(u, grid), scene.truth.regions["organ"] > 0, scene.truth.regions["rest"] > 0
        assert float(ops.jacobian_determinant(u, grid).min()) > 0.1
        assert float(found[organ].mean()) > 0.2
        assert float(found[rest].median()) < 1e-4


def test_the_true_map_carries_the_moving_image_to_the_fixed_one():
    scene = strain_scene(1, noise=0.0)
    pair, true_map = scene.pair, Dense(scene.truth.displacement, scene.pair.fixed.grid)
    before, after = (float(SSD()(pair.moving.moved_by(t, pair.fixed.grid), pair.fixed)) for t in (Identity(), true_map))
    assert after < 0.05 * before
    labels = scene.moving_labels.moved_by(true_map, mode="nearest").data
    assert min(dice(labels, scene.fixed_labels.data).values()) > 0.95


def test_the_strain_of_a_shear_and_a_turn():
    """Of a turn 0, also after a stretch by 2 along one axis, whose strain is log 2."""
    grid = Grid.unit((9, 9, 9))
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    c, s = np.cos(0.7), np.sin(0.7)
    for stretch, expected in ((1.0, 0.0), (2.0, np.log(2.0))):
        y = torch.stack([c * stretch * x[:, 0] - s * x[:, 1], s * stretch * x[:, 0] + c * x[:, 1], x[:, 2]], 1)
        assert torch.allclose(strain(y - x, grid), torch.tensor(expected, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"shape": [40, 96]}, {"shape": [96]}, {"noise": -1.0}])
def test_wrong_strain_scenes_say_so(wrong):
    assert list(StrainScenes(count=2, first=9).cases()) == ["strain09", "strain10"]
    with pytest.raises(ConfigError, match="strain: needs"):
        StrainScenes(**wrong)
