"""Momenta on finer and coarser grids."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from rdmm.spatial.ops import along
from rdmm.types import Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _cosines(n: int, m: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(m, n): from n voxels to m from end to end, by the cosines of half periods that both grids hold."""
    waves = torch.arange(min(n, m), dtype=torch.float64) * math.pi
    scale = torch.full_like(waves, 2.0)
    scale[0] = 1.0
    if m >= n:
        scale[-1] = 1.0
    old = torch.cos(torch.linspace(0, 1, n, dtype=torch.float64)[:, None] * waves)
    new = torch.cos(torch.linspace(0, 1, m, dtype=torch.float64)[:, None] * waves)
    new[[0, -1]] /= 2
    return ((new * (scale / (n - 1))) @ old.mT).to(device, dtype)


def resize_momentum(m: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A momentum (b, c, *s) on another number of voxels in the same frame, model (60).

    A momentum is a density: its values times the volume of a voxel. What it does to waves is kept, <m, wave> for each cosine that both
    grids hold, and so is K m. A voxel at the wall counts as half a voxel.
    """
    for axis, n in enumerate(shape, m.ndim - len(shape)):
        if m.shape[axis] != n:
            m = along(_cosines(m.shape[axis], n, m.dtype, m.device), m, axis)
    return m
