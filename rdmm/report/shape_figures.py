"""Figures of shapes: before and after in each plane, and the paths of control points. Measures and maps in, pictures out.

Lengths in figures are in millimeters; measures and maps are in domain units of a frame.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from rdmm.report.images import THUMBNAIL_HEIGHT
from rdmm.report.sheet import base64_picture
from rdmm.spatial.grid import Grid
from rdmm.spatial.measure import Measure
from rdmm.spatial.transform import Transform
from rdmm.types import Tensor

PLANES = {2: [(0, 1)], 3: [(0, 1), (0, 2), (1, 2)]}
"""For 2D and 3D: the horizontal and the vertical axis of each plane that is drawn."""

MAX_DOTS = 8000
"""About as many points of a shape are drawn; of a larger one, every k-th. Not measured."""


@dataclass(frozen=True, eq=False)
class ShapeResult:
    """The parts of a shape registration that figures show.

    Args:
        warped: the moving shape, mapped onto the fixed one.
        flow: the deformation alone, without the affine map before it.
    """

    warped: Measure
    flow: Transform


def shapes_by_method(
    fixed: Measure, moving: Measure, results: Mapping[str, ShapeResult], frame: Grid, make: Callable[..., Any] = Figure
) -> Any:
    """A matplotlib figure that compares several methods: the moving shape (before, and warped by each) over the fixed one.

    Each plane has its own rows. In 2D, the deformed grid of each flow is drawn too. ``make`` makes the empty figure, as for ``panels``.
    """
    shown = [("moving", moving, None), *((name, r.warped, r.flow) for name, r in results.items())]
    planes = PLANES[frame.ndim]
    columns = len(shown) if frame.ndim == 3 else min(4, len(shown))
    rows = len(planes) * -(-len(shown) // columns)
    figure = make(figsize=(5 * columns, 5 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat[len(planes) * len(shown) :]:
        panel.set_axis_off()
    panels = iter(axes.flat)
    for i, j in planes:
        for name, shape, flow in shown:
            panel = next(panels)
            _draw_shape(panel, fixed, frame, (i, j), "black")
            _draw_shape(panel, shape, frame, (i, j), "tab:red")
            panel.set_title(f"{name} (red) and fixed (black), {'xyz'[i]}{'xyz'[j]} plane, mm", fontsize=9)
            panel.set_aspect("equal")
            if frame.ndim == 2 and flow is not None:
                _draw_deformed_grid(panel, flow, frame)
    figure.tight_layout()
    return figure


def _draw_shape(panel: Any, shape: Measure, frame: Grid, plane: tuple[int, int], color: str) -> None:
    """Draw curves as lines, other shapes as dots at their vertices."""
    points = _world_points(shape.points, frame).T
    if shape.cells is not None and shape.cells.shape[1] == 2:
        segments = points[shape.cells.numpy()][:, :, list(plane)]
        panel.add_collection(LineCollection(list(segments), colors=color, linewidths=1))
        panel.autoscale()
    else:
        dots = _thin(points)
        panel.scatter(dots[:, plane[0]], dots[:, plane[1]], s=0.5, c=color)


def _draw_deformed_grid(panel: Any, flow: Transform, frame: Grid) -> None:
    """Draw the grid of the plane, deformed by the flow."""
    x = frame.resized([31] * 2).identity(torch.zeros(1))
    y = _world_points(flow(x), frame)
    for lines in (y, y.transpose(0, 2, 1)):
        panel.plot(lines[0], lines[1], color="tab:blue", linewidth=0.4, alpha=0.5)


def shape_thumbnail(figure: str, ndim: int) -> str:
    """The first plane of a figure (base64 PNG) of shapes in ``ndim`` dimensions, as a small base64 JPEG."""
    from PIL import Image as Pillow

    whole = Pillow.open(io.BytesIO(base64.b64decode(figure))).convert("L")
    row = whole.crop((0, 0, whole.width, whole.height // len(PLANES[ndim])))
    return base64_picture(row.resize((max(1, THUMBNAIL_HEIGHT * row.width // row.height), THUMBNAIL_HEIGHT)), "JPEG")


def shape_frames(fixed: Measure, steps: Iterable[tuple[float, Tensor]], frame: Grid) -> list[dict[str, Any]]:
    """The control points at each time over the fixed shape, in each plane, as data for the page's script.

    Args:
        steps: for each frame the time t, and the control points at t, (1, d, n).

    Returns:
        Frames as in ``animation.image_frames``; their ``lines`` are points.
    """
    path = [(t, _world_points(q, frame)) for t, q in steps]
    target = _world_points(fixed.points, frame)
    low, high = (f([f(x, 1) for x in (target, *(q for _, q in path))], 0) for f in (np.min, np.max))
    unit = 100 / float((high - low).max())

    def place(x: np.ndarray, i: int, j: int) -> np.ndarray:
        return np.stack([(x[i] - low[i]) * unit + 2, (high[j] - x[j]) * unit + 2], 1)

    def plane(q: np.ndarray, i: int, j: int) -> dict[str, Any]:
        size = [float((high - low)[k] * unit + 4) for k in (i, j)]
        return {
            "name": f"{'xyz'[i]}{'xyz'[j]} plane: fixed shape (gray), control points",
            "width": size[0],
            "height": size[1],
            "picture": _draw_dots(place(target, i, j), size),
            "lines": "".join(f"M{x:.1f},{y:.1f}h.01" for x, y in place(q, i, j)),
        }

    return [{"t": t, "planes": [plane(q, i, j) for i, j in PLANES[frame.ndim]]} for t, q in path]


def _draw_dots(points: np.ndarray, size: Sequence[float]) -> str:
    """Gray dots on black at points (n, 2), measured to the right and down; base64 PNG with four pixels a unit."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    picture = Pillow.new("L", (round(4 * size[0]), round(4 * size[1])))
    draw = ImageDraw.Draw(picture)
    for x, y in 4 * _thin(points):
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=150)
    return base64_picture(picture, "PNG")


def _thin(points: np.ndarray) -> np.ndarray:
    """Every k-th of the points (n, ...), at most about MAX_DOTS."""
    return points[:: max(1, len(points) // MAX_DOTS)]


def _world_points(points: Tensor, frame: Grid) -> np.ndarray:
    """Points (1, d, *t) of the frame in world millimeters, (d, *t)."""
    return frame.to_world(points.detach())[0].numpy()
