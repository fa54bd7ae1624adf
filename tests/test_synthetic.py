"""The synthetic shapes and the data sets."""

import itertools

import numpy as np
import pytest
import torch

from rdmm import ConfigError, Grid, Image, InputError
from rdmm.data.studies.brains import Brains, BrainSlices
from rdmm.data.studies.knees import LABEL_INTENSITIES, Knees, subsample_labels
from rdmm.data.studies.livers import Livers, hull_mask
from rdmm.data.studies.lungs import LungMasks, RightLung
from rdmm.data.synthetic.label_images import distinct_intensities, intensities_of, tissue_image
from rdmm.data.synthetic.scenes import OUTSIDE, SyntheticShapes, shapes_pair


@pytest.mark.parametrize("variation", ["own", "together"])
@pytest.mark.parametrize("shape", [(64, 64), (32, 30, 24)])
def test_shapes_are_the_same_for_the_same_seed(shape, variation):
    a, b, c = (shapes_pair(seed, shape, variation) for seed in (3, 3, 4))
    assert torch.equal(a[0].fixed.data, b[0].fixed.data) and torch.equal(a[2], b[2])
    assert not torch.equal(a[1], c[1])
    assert a[0].fixed.grid.shape == shape


def test_scenes_hold_what_the_paper_says():
    """One foreground with two objects inside, and two to five outside. The region is the foreground with the objects inside."""
    for seed in range(8):
        pair, fixed, moving = shapes_pair(seed, (100, 100))
        for labels in (fixed, moving):
            values = set(labels.unique().int().tolist())
            assert {0, 1, 2, 3, 4, 5} <= values <= set(range(9))
        assert torch.equal(pair.regions.data, ((moving > 0) & (moving < OUTSIDE)).float())


def areas(labels):
    return {k: int((labels == k).sum()) for k in labels.unique().int().tolist() if k}


def test_together_the_outer_objects_scale_with_the_foreground():
    """With one similarity transform, the areas of all outer objects change by the foreground's ratio; with own transforms they do not."""
    spread = {}
    for variation in ("own", "together"):
        ratios = []
        for seed in range(6):
            _, fixed, moving = shapes_pair(seed, (300, 300), variation)
            a, b = areas(fixed), areas(moving)
            whole = [sum(x[k] for k in (1, 2, 3)) for x in (a, b)]
            ratios += [a[k] / b[k] / (whole[0] / whole[1]) for k in a if k >= OUTSIDE and k in b]
        spread[variation] = float(np.std(ratios))
    assert spread["together"] < 0.02
    assert spread["own"] > 0.1


def test_a_data_set_of_shapes():
    cases = SyntheticShapes(count=3, shape=[40, 40], first=5).cases()
    assert list(cases) == ["shapes05", "shapes06", "shapes07"]
    inputs = cases["shapes06"]()
    assert inputs.fixed_regions.data.max() == 1
    assert inputs.pair.regions is not None
    for wrong in ({"count": 0}, {"shape": [8, 40]}, {"shape": [40]}):
        with pytest.raises(ConfigError, match="shapes"):
            SyntheticShapes(**wrong)


@pytest.mark.parametrize("data", [RightLung, LungMasks, Livers, Knees, Brains, BrainSlices])
def test_missing_data_are_named(data, tmp_path):
    cases = data(str(tmp_path)).cases()
    assert cases
    with pytest.raises(InputError, match="RDMM_DATA"):
        next(iter(cases.values()))()


@pytest.mark.data
@pytest.mark.parametrize(
    ("make", "labels"), [(RightLung, True), (LungMasks, True), (Livers, False), (Knees, True), (Brains, True), (BrainSlices, True)]
)
def test_real_data_are_read(data, make, labels):
    inputs = next(iter(make(str(data)).cases().values()))()
    assert (inputs.fixed_labels is not None) == labels
    assert torch.isfinite(inputs.pair.fixed.data).all()
    if make in (LungMasks, Livers):
        assert len(inputs.landmarks.fixed) >= 50
    if make is Livers:
        assert set(inputs.landmarks.by_region()) == {"liver", "outside"}


def test_pictures_of_labels():
    pair, fixed, _ = shapes_pair(0, (32, 30, 24))
    from rdmm import Image

    thin = subsample_labels(Image(fixed, pair.fixed.grid), (2, 3, 1))
    assert thin.grid.shape == (16, 10, 24)
    assert np.allclose(thin.grid.voxel, (2, 3, 1))
    picture = intensities_of(Image(fixed, pair.fixed.grid), LABEL_INTENSITIES).data
    assert 0.9 < float(picture.max()) < 1.05  # the Gaussian of .6 voxels overshoots by a percent


def test_every_label_has_an_intensity_of_its_own():
    """All labels get an intensity, FreeSurfer's as well as those of knees, and it is the same in every image."""
    codes = torch.tensor([0, 2, 3, 4, 41, 42, 43, 251, 252, 1021, 2021, 15000])
    values = distinct_intensities(codes)
    assert values[0] == 0 and float(values[1:].min()) >= 0.2 and float(values.max()) <= 1
    assert torch.equal(distinct_intensities(codes[[3, 7]]), values[[3, 7]])
    apart = distinct_intensities(torch.arange(1, 40)).diff().abs()
    assert float(apart.min()) > 0.25
    grid = Grid.unit((12, 10))
    image = intensities_of(Image(torch.full((1, 1, 12, 10), 15000.0), grid))
    assert float((image.data - values[-1]).abs().max()) < 1e-5
    with pytest.raises(InputError, match="have no intensity"):
        intensities_of(Image(torch.full((1, 1, 12, 10), 12.0), grid), LABEL_INTENSITIES)


def test_the_hull_holds_its_points_and_a_margin():
    pair, _, _ = shapes_pair(0, (32, 30, 24))
    grid, points = pair.fixed.grid, np.array([[8.0, 8, 8], [20, 8, 8], [8, 20, 8], [8, 8, 18]])
    small, large = (hull_mask(points, grid, m).data[0, 0] for m in (0.0, 3.0))
    assert small[9, 9, 9] == 1 and small[25, 25, 20] == 0
    assert small[6, 9, 9] == 0 and large[6, 9, 9] == 1
    assert (large >= small).all()


def test_textures_do_not_tell_labels_or_points():
    """Tissues that are alike have the same intensities whatever their label; images of other seeds have other textures."""
    grid = Grid((64, 64), np.eye(3))
    labels = Image((torch.arange(64).view(1, 1, 1, 64) // 16).expand(1, 1, 64, 64).float(), grid)
    images = [tissue_image(labels, (0.5, 0.8, 0.8, 0.5), seed).data for seed in range(12)]
    assert torch.equal(images[0], tissue_image(labels, (0.5, 0.8, 0.8, 0.5), 0).data)
    means = torch.stack([torch.stack([x[..., 16 * k : 16 * k + 16].mean() for k in range(4)]) for x in images])
    assert (means[:, 1] - means[:, 0]).min() > 0.15
    for a, b in ((0, 3), (1, 2)):
        difference = means[:, a] - means[:, b]
        assert abs(difference.mean()) < 3 * difference.std() / len(images) ** 0.5
    textures = [(x - torch.stack(images).mean(0)).flatten() for x in images]
    related = [torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in itertools.pairwise(textures)]
    assert max(abs(float(r)) for r in related) < 0.5
