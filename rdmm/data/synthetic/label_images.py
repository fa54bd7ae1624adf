"""Images of label maps."""

from __future__ import annotations

import torch

from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.image import Image

INTENSITY = (0.0, 0.5, 1.0, 0.4, 0.9, 0.3, 0.8, 0.5, 0.4, 0.3)
"""Of background, femur, its cartilage, tibia, its cartilage, patella, its cartilage, and lesions of the three bones."""


def intensities_of(labels: Image, voxels: float = 0.6) -> Image:
    """Intensities of labels, blurred by ``voxels``."""
    data = torch.tensor(INTENSITY)[labels.data.long().clamp(0, len(INTENSITY) - 1)]
    return Image(gaussian(data, voxels * min(labels.grid.spacing), labels.grid), labels.grid)
