"""Label maps are told from images by their voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from rdmm.spatial.label_map import is_label_map

RNG = np.random.default_rng(0)


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    x = gaussian_filter(RNG.normal(size=shape), 3)
    return (x - x.min()) / np.ptp(x)


@pytest.mark.parametrize("shape", [(64, 60), (40, 36, 30)])
def test_generated_maps_and_images(shape: tuple[int, ...]) -> None:
    """Names of regions in any type and order; against smooth, noisy, saturated, clipped and sparse images, of many or few gray levels."""
    regions = np.stack([smooth(shape) for _ in range(12)]).argmax(0)
    names = RNG.choice(5000, 12, replace=False)[regions]
    for labels in (names, names.astype(np.float64), names.astype(np.int64) * 10**9, regions > 6, np.where(smooth(shape) > 0.7, names, 0)):
        assert is_label_map(labels)
    x = smooth(shape)
    noise = RNG.normal(size=shape)
    for image in (
        255 * x,
        100 + 20 * noise,
        np.clip(1000 * x + 20 * noise, 400, 600),
        100 * np.clip((x - 0.5) * 4 + 0.5, 0, 1),
        np.where(x > 0.6, 300 * x + 5 * noise, -1000),
        np.where(names % 3 > 0, 100 * (names % 7) + 10 * noise, 0),
        RNG.poisson(3 * x),
        8 * x,
        16 * x,
        32 * x,
    ):
        for array in (np.rint(image).astype(np.int16), np.rint(image).astype(np.float32)):
            assert not is_label_map(array)
    assert not is_label_map(x) and not is_label_map(np.zeros(shape, np.uint8))


@pytest.mark.data
def test_files(data: Path) -> None:
    for name in ("oasis_trt20_labelled/01_labels", "knee_cartilage/9599539_20050809_right", "head_t1_mask"):
        for step in (1, 2):
            assert is_label_map(np.asarray(nib.load(data / f"slices_2d/{name}.nii.gz").dataobj).squeeze()[::step, ::step])
    for name in ("head_t1", "head_pd", "r16", "oasis_trt20_labelled/01_t1"):
        assert not is_label_map(np.asarray(nib.load(data / f"slices_2d/{name}.nii.gz").dataobj).squeeze())
