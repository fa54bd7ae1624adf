"""The background of an image: what surrounds the subject."""

from __future__ import annotations

import numpy as np

from rdmm.spatial.image import Image
from rdmm.types import Tensor

TOLERANCE = 0.1
"""Largest difference from the border's intensity, as a fraction of the range of intensities (1st to 99th percentile)."""

MARGIN_VOXELS = 3
"""Distance that the background keeps from the subject, whose deformation reaches out smoothly."""

MIN_BORDER_SHARE, MIN_SHARE = 0.5, 0.05
"""Share of the border, and of the whole image, that must be background. Otherwise the image is taken to have none."""


def find_background(image: Image) -> Tensor | None:
    """(1, 1, *s): 1 in the part of like intensity that is seen from the border, away from the subject; None if there is no such part."""
    smooth = _without_noise(image.data[0, 0].detach().cpu().float().numpy())
    border = np.ones(smooth.shape, dtype=bool)
    border[(slice(1, -1),) * smooth.ndim] = False
    low, high = np.percentile(smooth, [1, 99])
    like_border = np.abs(smooth - np.median(smooth[border])) <= TOLERANCE * (high - low)
    if like_border[border].mean() < MIN_BORDER_SHARE:
        return None
    away = _eroded(_seen_from_border(like_border), MARGIN_VOXELS)
    if away.mean() < MIN_SHARE:
        return None
    return image.data.new_tensor(away[None, None])


def _without_noise(x: np.ndarray) -> np.ndarray:
    """x after the low-pass (1, 4, 6, 4, 1) / 16 along each axis, whose variance is one voxel."""
    for axis in range(x.ndim):
        for _ in range(2):
            padded = np.pad(np.moveaxis(x, axis, 0), [(1, 1), *[(0, 0)] * (x.ndim - 1)], mode="edge")
            x = np.moveaxis((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4, 0, axis)
    return x


def _seen_from_border(part: np.ndarray) -> np.ndarray:
    """Where a straight line along an axis leads to the border without leaving ``part``."""
    seen = np.zeros_like(part)
    for axis in range(part.ndim):
        for order in (1, -1):
            lines = np.moveaxis(part, axis, 0)[::order]
            seen |= np.moveaxis(np.logical_and.accumulate(lines)[::order], 0, axis)
    return seen


def _eroded(part: np.ndarray, steps: int) -> np.ndarray:
    """``part`` without its voxels that are at most ``steps`` steps along the axes from a voxel outside it, of those in the image."""
    for _ in range(steps):
        left = part.copy()
        for axis in range(part.ndim):
            inner, lines = np.moveaxis(left, axis, 0), np.moveaxis(part, axis, 0)
            inner[1:] &= lines[:-1]
            inner[:-1] &= lines[1:]
        part = left
    return part
