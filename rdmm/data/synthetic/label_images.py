"""Make images from label maps, for data sets without images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rdmm.data.synthetic.random_maps import smooth_noise
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.image import Image
from rdmm.types import InputError, Tensor

TEXTURE_WIDTHS, BIAS_WIDTH = (0.01, 0.03), 0.3
"""Smoothness of the texture's parts, and of the bias field, in domain units."""

BLUR_VOXELS = 0.6
"""Standard deviation of the blur, in voxels: about the blur of a real image at its own resolution."""


def intensities_of(labels: Image, table: Sequence[float] | None = None) -> Image:
    """Make an image from a label map: one intensity per label, blurred by BLUR_VOXELS.

    Args:
        labels: (b, 1, *s), integers >= 0.
        table: intensities of labels 0, 1, ...; None: ``distinct_intensities``, which exist for all labels.

    Raises:
        InputError: a label is negative, or not in the table.
    """
    label, index = labels.data.long().unique(return_inverse=True)
    if int(label[0]) < 0 or (table is not None and int(label[-1]) >= len(table)):
        have = "0 and above" if table is None else f"0 to {len(table) - 1}"
        raise InputError(f"labels from {int(label[0])} to {int(label[-1])} have no intensity; {have} have")
    values = distinct_intensities(label) if table is None else torch.tensor(table)[label]
    return Image(gaussian(values[index], BLUR_VOXELS * min(labels.grid.spacing), labels.grid), labels.grid)


def distinct_intensities(label: Tensor) -> Tensor:
    """Intensities of labels: 0 for label 0, and 0.2 to 1 for the others. A label has the same intensity in every image.

    Consecutive labels differ by at least 0.3: multiples of the golden ratio, modulo 1, are spread more evenly than random numbers.
    """
    golden = (5**0.5 - 1) / 2
    return torch.where(label == 0, 0.0, 0.2 + 0.8 * ((label.double() * golden) % 1.0)).float()


def tissue_image(labels: Image, table: Sequence[float], seed: int, texture: float = 0.06, noise: float = 0.06, bias: float = 0.15) -> Image:
    """Make an image of tissues with texture, a bias field and noise. These are random, and do not depend on the labels.

    Give labels of one tissue the same intensity in ``table``: then nothing but their positions tells them apart. Images of other seeds
    have a texture of their own, so it says nothing about which points correspond.

    Args:
        labels: (b, 1, *s), integers >= 0.
        table: intensities of labels 0, 1, ...
        seed: the same seed gives the same image.
        texture, noise: standard deviations of the texture, and of the noise of each voxel.
        bias: standard deviation of the logarithm of the bias field, by which tissues and texture are multiplied.

    Raises:
        InputError: as ``intensities_of``.
    """
    rng, grid = np.random.default_rng(seed), labels.grid
    parts = [smooth_noise(rng, 1, grid, width) for width in TEXTURE_WIDTHS]
    tissue = intensities_of(labels, table).data + texture * sum(parts, torch.zeros(1)) / len(parts) ** 0.5
    field = (bias * smooth_noise(rng, 1, grid, BIAS_WIDTH)).exp()
    return Image(field * tissue + noise * torch.from_numpy(rng.standard_normal(tissue.shape, dtype=np.float32)), grid)
