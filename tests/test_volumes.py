"""Random volumes: the same number gives the same pair whoever makes it, and what the options promise is in the images."""

import numpy as np
import pytest
import torch

from rdmm.data.synthetic.anatomies import KINDS, Anatomies
from rdmm.data.synthetic.volumes import Volumes
from rdmm.data.training.volumes import VolumePairs
from rdmm.spatial.grid import Grid
from rdmm.types import ConfigError

SHAPE = (24, 24, 20)
STILL = {"deformation": 0.0, "turn": 0.0, "stretch": 0.0, "shift": 0.0, "sliding": 0.0, "cut": 0.0, "thickness": 1.0, "flips": False}


def equal(a, b) -> bool:
    images = [(x.pair.fixed, x.pair.moving, x.fixed_labels, x.moving_labels) for x in (a, b)]
    return all(torch.equal(p.data, q.data) for p, q in zip(*images, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(32, 28), SHAPE])
def test_every_kind_has_several_regions(kind, shape):
    labels = Anatomies(shape, [kind], regions=8)(3)
    assert labels.shape == (1, 1, *shape) and labels.dtype == torch.uint8
    present, counts = labels.unique(return_counts=True)
    assert len(present) >= 4 and int(counts.max()) < 0.9 * labels.numel()


def test_a_pair_is_the_same_whoever_makes_it(tmp_path):
    """In memory, written to a folder, read from it, and after other pairs: as workers meet them."""
    plain = VolumePairs(Volumes(SHAPE, anatomies=3))
    kept = VolumePairs(Volumes(SHAPE, anatomies=3, folder=str(tmp_path)))
    assert equal(plain.pair(5), kept.pair(5))
    files = list(tmp_path.glob("*.npy"))
    assert len(files) == 1
    again = Anatomies(SHAPE, folder=str(tmp_path))
    number = next(k for k in range(3) if again._path(again.kinds[k % 4], k) == files[0])
    made = again.read_or_make(number)
    files[0].write_bytes(files[0].read_bytes()[:50])
    assert torch.equal(again.read_or_make(number), made)  # a damaged file is made anew
    assert not equal(plain.pair(5), plain.pair(6))
    assert not equal(plain.pair(0), plain.held_out("validation")["volume00"]())


def test_without_maps_both_images_have_the_labels_of_the_anatomy():
    volumes = Volumes(SHAPE, anatomies=1, **STILL)
    sample = volumes.pair(np.random.default_rng(0))
    labels = Anatomies(SHAPE)(0).float()
    assert torch.equal(sample.fixed_labels.data, labels) and torch.equal(sample.moving_labels.data, labels)
    for image in (sample.pair.fixed, sample.pair.moving):
        assert float(image.data.min()) == 0 and float(image.data.max()) == 1


def test_thick_slices_cuts_sliding_and_flips_are_seen():
    rng = np.random.default_rng(0)
    noise = torch.rand(1, 1, *SHAPE)
    thick = Volumes(SHAPE, thickness=5.0)._sliced(np.random.default_rng(2), noise)
    steps = sorted(float(thick.diff(dim=axis).square().mean() / noise.diff(dim=axis).square().mean()) for axis in (2, 3, 4))
    assert steps[0] < 0.2 * steps[2]  # smooth across the slices, not within them
    data, labels = Volumes(SHAPE, cut=0.9)._cut(rng, noise + 1, torch.ones_like(noise))
    assert 0 < float((data == 0).float().mean()) < 0.95 and torch.equal(data == 0, labels == 0)
    wall = Volumes(SHAPE)._wall(rng)
    moves = wall.norm(dim=1)
    assert float(moves.max()) > 0.01 and 0.2 < float((moves == 0).float().mean()) < 0.95
    labels = Anatomies(SHAPE)(0)
    turned = Volumes(SHAPE)._reoriented(rng, labels)
    assert turned.shape == labels.shape and not torch.equal(turned, labels)
    assert torch.equal(turned.unique(return_counts=True)[1], labels.unique(return_counts=True)[1])
    assert Volumes((20, 24, 28)).pair(np.random.default_rng(3)).pair.fixed.grid == Grid((20, 24, 28), np.eye(4))


@pytest.mark.parametrize(
    ("more", "message"),
    [({"kinds": ["lungs"]}, "regions, mixture"), ({"cut": 1.0}, "cut"), ({"thickness": 0.5}, "thickness"), ({"regions": 2}, "5 to 100")],
)
def test_wrong_volumes_say_so(more, message):
    with pytest.raises(ConfigError, match=message):
        Volumes(SHAPE, **more).pair(np.random.default_rng(0))
