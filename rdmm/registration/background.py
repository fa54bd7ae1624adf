"""The background of an image: what surrounds the subject."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from rdmm.spatial.image import Image
from rdmm.types import Tensor

SMOOTHING_VOXELS = 1.0
"""Gaussian low-pass against noise before the threshold."""

TOLERANCE = 0.1
"""Largest difference from the border's intensity, as a fraction of the range of intensities (1st to 99th percentile)."""

MARGIN_VOXELS = 3
"""Distance that the background keeps from the subject, whose deformation reaches out smoothly."""

MIN_BORDER_SHARE, MIN_SHARE = 0.5, 0.05
"""Share of the border, and of the whole image, that must be background. Otherwise the image is taken to have none."""


def find_background(image: Image) -> Tensor | None:
    """(1, 1, *s): 1 in the part of like intensity that is connected to the border, away from the subject; None if there is no such part."""
    data = image.data[0, 0].detach().cpu().float()
    smooth = ndimage.gaussian_filter(data.numpy(), SMOOTHING_VOXELS)
    border = np.ones(smooth.shape, dtype=bool)
    border[(slice(1, -1),) * smooth.ndim] = False
    low, high = np.percentile(smooth, [1, 99])
    like_border = np.abs(smooth - np.median(smooth[border])) <= TOLERANCE * (high - low)
    if like_border[border].mean() < MIN_BORDER_SHARE:
        return None
    parts, _ = ndimage.label(like_border)
    connected = np.isin(parts, np.setdiff1d(np.unique(parts[border]), [0]))
    away = ndimage.binary_erosion(connected, iterations=MARGIN_VOXELS, border_value=1)
    if away.mean() < MIN_SHARE:
        return None
    return image.data.new_tensor(away[None, None])
