"""The largest organ of an image, found by its intensities alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rdmm.metrics import otsu_threshold
from rdmm.spatial.image import Image
from rdmm.types import InputError

WIDE, FINE = 4.0, 2.0
"""Smoothness (sigma, mm) of the image where an even part is sought, so that vessels do not count; and where it grows."""

EVEN, TISSUE = 0.05, 1.2
"""An even part changes by less than this fraction per mm, and is brighter than this multiple of what separates air from tissue."""

TOLERANCE = 0.3
"""The organ's intensities differ from that of its even part by at most this fraction."""

OPENING, CLOSING = 8.0, 15.0
"""Bridges to other organs are thinner than twice the first, vessels than twice the second (mm)."""


def largest_organ(image: Image) -> Image:
    """1 in the organ around the largest ball of even intensity, else 0: it grows from there through similar intensities.

    Args:
        image: (1, 1, *s).

    Raises:
        InputError: no part of the image is even.
    """
    from scipy.ndimage import gaussian_filter, label

    values, voxel = image.data[0, 0].double().numpy(), image.grid.voxel
    wide, fine = (gaussian_filter(values, [sigma / h for h in voxel]) for sigma in (WIDE, FINE))
    logs = torch.from_numpy(np.log1p(values.clip(0)).astype(np.float32)).flatten()
    tissue = wide > TISSUE * np.expm1(otsu_threshold(logs))
    change = np.sqrt(sum(np.square(np.gradient(wide, h, axis=k)) for k, h in enumerate(voxel)))
    radius = _depth(tissue & (change < EVEN * wide), voxel, outside=False)
    if not radius.max() > 0:
        raise InputError("no part of the image has an even intensity, so no organ can be found; give the region as a label map")
    seed = np.zeros(values.shape, bool)
    seed[np.unravel_index(radius.argmax(), radius.shape)] = True
    ball = _depth(~seed, voxel) < radius.max()
    level = float(np.median(values[ball]))
    core = _depth(np.abs(fine - level) < TOLERANCE * level, voxel) > OPENING
    parts, _ = label(core | ball)
    organ = _grown(parts == parts[seed][0], voxel, OPENING)
    closed = ~_grown(~_grown(organ, voxel, CLOSING), voxel, CLOSING)
    return Image(torch.from_numpy((organ | closed).astype(np.float32))[None, None], image.grid)


def _depth(mask: np.ndarray, voxel: Sequence[float], *, outside: bool = True) -> np.ndarray:
    """Distance (mm) to where ``mask`` is false; ``outside``: whether it goes on as it is at the image's edge, or ends there."""
    from scipy.ndimage import distance_transform_edt

    padded = np.pad(mask, 1, mode="edge") if outside else np.pad(mask, 1)
    return distance_transform_edt(padded, sampling=voxel)[(slice(1, -1),) * mask.ndim]


def _grown(mask: np.ndarray, voxel: Sequence[float], by: float) -> np.ndarray:
    """A mask with all within ``by`` mm of it."""
    return _depth(~mask, voxel) <= by
