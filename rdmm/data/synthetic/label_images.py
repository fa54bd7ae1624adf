"""Images of label maps, where a data set has no intensities."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.image import Image
from rdmm.types import InputError, Tensor

BLUR_VOXELS = 0.6
"""Standard deviation of the blur, in voxels: about that of an image's own resolution."""


def intensities_of(labels: Image, table: Sequence[float] | None = None) -> Image:
    """An image of a label map, blurred by BLUR_VOXELS.

    Args:
        labels: (b, 1, *s), whole numbers >= 0.
        table: intensity of label 0, 1, ...; None: ``distinct_intensities``, which serve any labels.

    Raises:
        InputError: a label that is negative, or not in the table.
    """
    label, index = labels.data.long().unique(return_inverse=True)
    if int(label[0]) < 0 or (table is not None and int(label[-1]) >= len(table)):
        raise InputError(f"labels from {int(label[0])} to {int(label[-1])} have no intensity; 0 to {len(table or ()) - 1} have")
    values = distinct_intensities(label) if table is None else torch.tensor(table)[label]
    return Image(gaussian(values[index], BLUR_VOXELS * min(labels.grid.spacing), labels.grid), labels.grid)


def distinct_intensities(label: Tensor) -> Tensor:
    """0 for label 0, and 0.2 to 1 for the others: a function of the label alone, so that it is the same in every image.

    Consecutive labels differ by 0.3 or more: multiples of the golden ratio, modulo 1, keep further apart than random numbers do.
    """
    golden = (5**0.5 - 1) / 2
    return torch.where(label == 0, 0.0, 0.2 + 0.8 * ((label.double() * golden) % 1.0)).float()
