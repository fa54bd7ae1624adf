"""Frames of the animation in report.html."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from rdmm.report.sheet import base64_picture, gray_picture
from rdmm.report.slices import PLANES, axes_in_plane, intensity_range
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Transform
from rdmm.types import Tensor

GRID_LINES, PICTURE_PIXELS = 24, 256
"""Lines of the deformed grid along the longer side of a plane, and its pixels. Not measured: they keep a page small."""


def image_frames(
    fixed: Image, moving: Image, steps: Iterable[tuple[float, Tensor, Transform]], shooting_grid: Grid
) -> list[dict[str, Any]]:
    """The moving image and the deformed grid at each time, in the middle slice of each plane, as data for the page's script.

    Args:
        steps: for each frame the time t, the displacement (1, d, *s) of the deformation on the shooting grid, and the total map
            fixed -> moving at t, in domain units of the fixed grid.
        shooting_grid: the grid of the displacements.

    Returns:
        For each frame ``t`` and ``planes``. Each plane has ``name``; ``width`` and ``height``, proportional to millimeters, the longer
        one 100; ``picture`` (base64 PNG); and ``lines`` (an SVG path in these units).
    """
    grid = fixed.grid
    frames, (low, high) = [], intensity_range(moving.data)
    identity = grid.identity(fixed.data)
    for t, displacement, transform in steps:
        planes = []
        for name, axis in PLANES[grid.ndim]:
            x = identity if grid.ndim == 2 else identity.narrow(2 + axis, grid.shape[axis] // 2, 1)
            points = moving.locate(transform(x), grid)
            shape = [grid.shape[i] for i in axes_in_plane(axis, grid)]
            values = torch.where(moving.grid.contains(points), ops.sample(moving.data, points, moving.grid), 0)[0, 0].reshape(shape)
            u = ops.sample(displacement, x, shooting_grid)
            planes.append({"name": name, **_plane(((values - low) / (high - low)).clamp(0, 1), (x + u)[0], axis, grid)})
        frames.append({"t": t, "planes": planes})
    return frames


def _plane(values: Tensor, y: Tensor, axis: int, grid: Grid) -> dict[str, Any]:
    """One plane of a frame, from its values (n, m) in [0, 1] and its mapped points y (d, ...) in domain units."""
    kept = axes_in_plane(axis, grid)
    n, m = values.shape
    width, height = ((grid.shape[i] * grid.voxel[i]) for i in kept)
    unit = 100 / max(width, height)
    across, up = ((y[i].reshape(n, m) / grid.spacing[i] + 0.5) * grid.voxel[i] * unit for i in kept)
    places = torch.stack([across, height * unit - up]).cpu().numpy()
    step = max(1, max(n, m) // GRID_LINES)
    fine = max(1, step // 2)
    lines = [places[:, i, ::fine] for i in range(0, n, step)] + [places[:, ::fine, j] for j in range(0, m, step)]
    path = "".join("M" + " ".join(["%.1f,%.1f"] * line.shape[1]) % tuple(line.T.ravel().tolist()) for line in lines)
    stride = max(1, max(n, m) // PICTURE_PIXELS)
    picture = gray_picture(values.cpu().numpy().T[::-stride, ::stride])
    return {"width": width * unit, "height": height * unit, "picture": base64_picture(picture, "PNG"), "lines": path}
