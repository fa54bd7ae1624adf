"""The slices of images and maps that pages and figures show, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import Tensor

PLANES = {2: [("plane", 1)], 3: [("sagittal", 0), ("coronal", 1), ("axial", 2)]}
"""For 2D and 3D: the name of each plane, and the axis perpendicular to it (ignored in 2D)."""


@dataclass(frozen=True, eq=False)
class ImageResult:
    """The parts of an image registration that figures show.

    Args:
        warped: the moving image on the fixed grid.
        displacement: (1, d, *s) of the deformation on the fixed grid, in domain units.
        sigmas: sigma(x) at t = 0 and t = 1 on the fixed grid, (1, 1, *s) in mm; None without pre-weights.
    """

    warped: Image
    displacement: Tensor
    sigmas: tuple[Tensor, Tensor] | None = None


def axes_in_plane(axis: int, grid: Grid) -> list[int]:
    """The horizontal and the vertical axis of the plane perpendicular to ``axis``."""
    return [i for i in range(grid.ndim) if grid.ndim == 2 or i != axis]


def middle_slice(x: Tensor, axis: int) -> np.ndarray:
    """The middle slice of x (*s) perpendicular to ``axis`` (2D: all of x), as rows of pixels: (vertical, horizontal)."""
    array = x.detach().cpu().numpy()
    if array.ndim == 3:
        array = np.take(array, array.shape[axis] // 2, axis=axis)
    return array.T


def aspect(axis: int, grid: Grid) -> float:
    """Height of a voxel divided by its width, in the plane perpendicular to ``axis``."""
    right, up = axes_in_plane(axis, grid)
    return grid.voxel[up] / grid.voxel[right]


def log_jacobian(displacement: Tensor, grid: Grid) -> Tensor:
    """log det J of x + u(x), (b, *s); smaller determinants, as in folds, are set to .001."""
    return ops.jacobian_determinant(displacement, grid).clamp_min(1e-3).log()


def intensity_range(x: Tensor) -> Tensor:
    """The percentiles 0.1 and 99.9 of x, (2,); large tensors are subsampled to about a million values."""
    values = x.flatten()[:: max(1, x.numel() // 1_000_000)].cpu().numpy()
    low, high = torch.as_tensor(np.quantile(values, (0.001, 0.999))).to(x)  # torch's would sort them
    if low == high:  # all but a few voxels have one value: the others set the range
        low, high = x.amin(), x.amax()
    return torch.stack([low, high if high > low else low + low.abs().clamp_min(1.0)])


def scale_intensity(image: Image) -> Tensor:
    """The first channel (*s), scaled to [0, 1]."""
    x = image.data[0, 0]
    low, high = intensity_range(x)
    return ((x - low) / (high - low)).clamp(0, 1)


def deformed_lines(displacement: Tensor, axis: int, grid: Grid, lines: int = 40) -> list[np.ndarray]:
    """About ``lines`` lines (n, 2) along either axis of the grid that a displacement (1, d, *s) deforms, in the plane in the middle across
    ``axis``: horizontal and vertical coordinates in voxels."""
    identity = grid.identity(displacement)
    x, y = (
        (middle_slice(identity[0, i], axis) + middle_slice(displacement[0, i], axis)) / grid.spacing[i] for i in axes_in_plane(axis, grid)
    )
    places = np.stack([x, y], -1)
    step = max(1, max(x.shape) // lines)
    return [*places[::step], *places.swapaxes(0, 1)[::step]]
