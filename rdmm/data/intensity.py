"""Normalization of intensities before registration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdmm.spatial.image import Image
from rdmm.types import ConfigError, InputError, Tensor


@dataclass(frozen=True)
class Normalize:
    """Map the percentiles ``low`` and ``high`` of the intensities to 0 and 1, and clamp (as in the RDMM paper).

    Percentiles are taken per channel, inside the mask.

    Args:
        low, high: percentiles.
        window: clamp to these two intensities first, e.g. [-1000, 500] for CT; None: do not.
    """

    low: float = 0.1
    high: float = 99.9
    window: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100:
            raise ConfigError(f"intensity: low and high must be percentiles with 0 <= low < high <= 100; got {self.low}, {self.high}")
        if self.window is not None and (len(self.window) != 2 or not self.window[0] < self.window[1]):
            raise ConfigError(f"intensity.window must be [lowest, highest], e.g. [-1000,500]; got {self.window}")

    def __call__(self, image: Image, name: str = "the image") -> Image:
        """The normalized image. Raises InputError, with ``name``, for an image without contrast."""
        data = image.data if self.window is None else image.data.clamp(*self.window)
        channels = [self._channel(data[b, c], image.mask, b, name) for b in range(data.shape[0]) for c in range(data.shape[1])]
        return Image(torch.stack(channels).view_as(data), image.grid, image.mask)

    def _channel(self, x: Tensor, mask: Tensor | None, b: int, name: str) -> Tensor:
        values = x.flatten() if mask is None else x[mask[min(b, mask.shape[0] - 1), 0] > 0]
        where = "" if mask is None else " inside the mask"
        if values.numel() == 0:
            raise InputError(f"{name}: no contrast: there is no voxel{where}")
        ranks = [round(p / 100 * (values.numel() - 1)) for p in (0, self.low, self.high, 100)]
        lowest, low, high, highest = torch.as_tensor(np.partition(values.cpu().numpy(), ranks)[ranks]).to(x)
        if lowest == highest:
            raise InputError(f"{name}: no contrast (std=0): every voxel{where} is {float(lowest):g}")
        if low == high:  # almost all voxels are equal (a small object): use the whole range
            low, high = lowest, highest
        return ((x.double() - low) / (high.double() - low)).clamp(0, 1).to(x.dtype)
