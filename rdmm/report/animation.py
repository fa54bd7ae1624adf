"""Frames of the animation on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rdmm.report.figures import PLANES, encoded, grey_picture, intensity_range
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor

if TYPE_CHECKING:
    from rdmm.registration.images import Registration


def frames(registration: Registration) -> list[dict[str, Any]]:
    """The moving image and the grid at each moment of the last deformation, in the middle of each plane: for the page's script.

    Each frame: t, and of each plane its name, width and height in proportion to millimetres, picture (base64 PNG), and lines (an
    SVG path in these units).
    """
    pair, grid = registration.pair, registration.pair.fixed.grid
    out, low, high = [], *intensity_range(pair.moving.data)
    identity = grid.identity(pair.fixed.data)
    for moment, transform in registration.on_the_way():
        planes = []
        for name, axis in PLANES[grid.ndim]:
            x = identity if grid.ndim == 2 else identity.narrow(2 + axis, grid.shape[axis] // 2, 1)
            points = pair.moving.locate(transform(x), grid)
            values = ops.sample(pair.moving.data, points, pair.moving.grid)[0, 0].reshape(
                [n for i, n in enumerate(x.shape[2:]) if grid.ndim == 2 or i != axis]
            )
            u = ops.sample(moment.displacement, x, registration.shot)
            planes.append({"name": name, **_plane(((values - low) / (high - low)).clamp(0, 1), (x + u)[0], axis, grid)})
        out.append({"t": moment.t, "planes": planes})
    return out


def _plane(values: Tensor, y: Tensor, axis: int, grid: Grid) -> dict[str, Any]:
    """A plane of a frame: values (n, m) in [0, 1], and where its points are, y (d, ...) in domain units."""
    kept = [i for i in range(grid.ndim) if grid.ndim == 2 or i != axis]
    n, m = values.shape
    width, height = ((grid.shape[i] * grid.voxel[i]) for i in kept)
    unit = 100 / max(width, height)
    across, up = ((y[i].reshape(n, m) / grid.spacing[i] + 0.5) * grid.voxel[i] * unit for i in kept)
    places = torch.stack([across, height * unit - up]).cpu().numpy()
    step = max(1, max(n, m) // 24)
    fine = max(1, step // 2)
    lines = [places[:, i, ::fine] for i in range(0, n, step)] + [places[:, ::fine, j] for j in range(0, m, step)]
    path = "".join("M" + " ".join(f"{a:.1f},{b:.1f}" for a, b in line.T) for line in lines)
    stride = max(1, max(n, m) // 256)
    picture = grey_picture(values.cpu().numpy().T[::-stride, ::stride])
    return {"width": width * unit, "height": height * unit, "picture": encoded(picture, "PNG"), "lines": path}


def dotted(points: np.ndarray, size: Sequence[float]) -> str:
    """Points (n, 2), to the right and down, as grey dots on black: base64 PNG of four pixels a unit."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    picture = Pillow.new("L", (round(4 * size[0]), round(4 * size[1])))
    draw = ImageDraw.Draw(picture)
    for x, y in 4 * points[:: max(1, len(points) // 8000)]:
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=150)
    return encoded(picture, "PNG")
