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

PLACE_COLORS = "turbo"
"""Colors of places on the moving shape."""

MAX_DOTS = 8000
"""About as many points of a shape are drawn; of a larger one, every k-th. Not measured."""


PLAN_LINES = 200
"""About as many lines of a plan are drawn. Not measured."""

FLOW_TIMES = (0.05, 0.1, 0.2, 1.0)
"""Fractions of the duration of a gradient flow at which its particles are drawn, after the arrows at t = 0."""


@dataclass(frozen=True, eq=False)
class ShapeResult:
    """The parts of a shape registration that figures show.

    Args:
        warped: the moving shape, mapped onto the fixed one.
        flow: the deformation alone, without the affine map before it.
        goals: where a plan sends the atoms of ``warped``, (1, d, n); None without a plan.
        paths: of a gradient flow, the times and the particles (1, d, n); else empty.
    """

    warped: Measure
    flow: Transform
    goals: Tensor | None = None
    paths: Sequence[tuple[float, Tensor]] = ()


def shapes_by_method(
    fixed: Measure, moving: Measure, results: Mapping[str, ShapeResult], frame: Grid, make: Callable[..., Any] = Figure
) -> Any:
    """A matplotlib figure that compares several methods: the moving shape (before, and warped by each) over the fixed one.

    A point has the same color before and after, so that correspondences are seen. Each plane has its own rows. In 2D, the deformed grid of
    each flow is drawn too, and the plan between warped and fixed. Gradient flows have a row for each method: arrows, then particles.
    ``make`` makes the empty figure, as for ``panels``.
    """
    if all(r.paths for r in results.values()):
        return _flows_by_method(fixed, moving, results, frame, make)
    shown = [("moving", moving, None), *((name, r.warped, r) for name, r in results.items())]
    planes, colors = PLANES[frame.ndim], place_colors(moving)
    columns = len(shown) if frame.ndim == 3 else min(_columns(len(shown)), len(shown))
    rows = len(planes) * -(-len(shown) // columns)
    figure = make(figsize=(4 * columns, 4 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat[len(planes) * len(shown) :]:
        panel.set_axis_off()
    panels = iter(axes.flat)
    for plane in planes:
        for name, shape, result in shown:
            panel = next(panels)
            if frame.ndim == 2 and result is not None:
                _draw_deformed_grid(panel, result.flow, frame)
            if result is not None and result.goals is not None:
                _draw_plan(panel, result.warped, result.goals, frame)
            _draw_shape(panel, fixed, frame, plane, "black")
            _draw_shape(panel, shape, frame, plane, colors)
            plane_name = "" if frame.ndim == 2 else f", {'xyz'[plane[0]]}{'xyz'[plane[1]]} plane"
            panel.set_title(f"{name}{plane_name}", fontsize=10)
            panel.set_aspect("equal")
            panel.tick_params(labelsize=7)
    figure.supxlabel("mm; black: fixed; color: place on the moving shape" + _plan_note(results), fontsize=9)
    figure.tight_layout()
    return figure


def _plan_note(results: Mapping[str, ShapeResult]) -> str:
    return "; gray lines: the plan" if any(r.goals is not None for r in results.values()) else ""


def _columns(count: int) -> int:
    """Columns, at most five, that leave the fewest panels of ``count`` empty."""
    return min((5, 4, 3), key=lambda c: -count % c)


def _flows_by_method(fixed: Measure, moving: Measure, results: Mapping[str, ShapeResult], frame: Grid, make: Callable[..., Any]) -> Any:
    """A row for each method: minus the gradient at t = 0 as arrows, then the particles at FLOW_TIMES, over the fixed points."""
    plane, colors = PLANES[frame.ndim][0], place_colors(moving)
    columns = 1 + len(FLOW_TIMES)
    figure = make(figsize=(2.2 * columns, 1.9 * len(results)))
    axes = figure.subplots(len(results), columns, squeeze=False, sharex=True, sharey=True)
    for row, (name, result) in zip(axes, results.items(), strict=True):
        (_, start), (dt, after) = result.paths[:2]
        arrows = (after - start) / dt
        row[0].set_ylabel(name, fontsize=9)
        _draw_shape(row[0], fixed, frame, plane, "lightgray", size=2)
        x, v = _world_points(start, frame), arrows[0].numpy() * frame.length
        fastest = float(np.hypot(v[plane[0]], v[plane[1]]).max()) or 1.0
        longest = 0.25 * frame.length / fastest
        some = slice(None, None, max(1, x.shape[1] // PLAN_LINES))
        ends = [x[i, some] for i in plane] + [longest * v[i, some] for i in plane]
        row[0].quiver(*ends, np.asarray(colors)[some], angles="xy", scale_units="xy", scale=1, width=4e-3, cmap=PLACE_COLORS)
        row[0].set_title(f"t = 0, longest arrow {fastest / frame.length:.2g}", fontsize=7)
        for panel, fraction in zip(row[1:], FLOW_TIMES, strict=True):
            t, points = result.paths[round(fraction * (len(result.paths) - 1))]
            _draw_shape(panel, fixed, frame, plane, "lightgray", size=2)
            _draw_shape(panel, Measure(points), frame, plane, colors, size=2)
            panel.set_title(f"t = {t:.3g}", fontsize=7)
    for panel in axes.flat:
        panel.set_aspect("equal")
        panel.set_xticks([])
        panel.set_yticks([])
    figure.tight_layout()
    return figure


def place_colors(shape: Measure) -> np.ndarray:
    """A number in [0, 1] for each vertex: along a curve, the order of its vertices; else the place along the longest axis of the box."""
    points = shape.points.detach()[0].cpu().numpy()
    n = points.shape[1]
    if shape.cells is not None and shape.cells.shape[1] == 2:
        return np.arange(n) / max(1, n - 1)
    along = points[int(np.argmax(np.ptp(points, axis=1)))]
    return (along - along.min()) / (np.ptp(along) or 1.0)


def _draw_shape(panel: Any, shape: Measure, frame: Grid, plane: tuple[int, int], color: str | np.ndarray, *, size: float = 0.5) -> None:
    """Draw curves as lines, other shapes as dots at their vertices, in one color or with a number from place_colors for each vertex."""
    points = _world_points(shape.points, frame).T
    if shape.cells is not None and shape.cells.shape[1] == 2:
        cells = shape.cells.numpy()
        lines = LineCollection(list(points[cells][:, :, list(plane)]), linewidths=1 if isinstance(color, str) else 1.6)
        if isinstance(color, str):
            lines.set_color(color)
        else:
            lines.set(array=color[cells[:, 0]], cmap=PLACE_COLORS, clim=(0, 1))
        panel.add_collection(lines)
        panel.autoscale()
    else:
        dots = _thin(points)
        shade = {"c": color} if isinstance(color, str) else {"c": _thin(color), "cmap": PLACE_COLORS, "vmin": 0, "vmax": 1}
        panel.scatter(dots[:, plane[0]], dots[:, plane[1]], s=size, **shade)


def _draw_plan(panel: Any, warped: Measure, goals: Tensor, frame: Grid) -> None:
    """Draw lines from about PLAN_LINES atoms of a shape in the plane to where the plan sends them."""
    ends = np.stack([_world_points(x, frame).T for x in (warped.atoms().points, goals)], 1)
    lines = ends[:: max(1, len(ends) // PLAN_LINES)]
    panel.add_collection(LineCollection(list(lines), colors="gray", linewidths=0.6))


def _draw_deformed_grid(panel: Any, flow: Transform, frame: Grid) -> None:
    """Draw the grid of the plane, deformed by the flow."""
    x = frame.resized([31] * 2).identity(torch.zeros(1))
    y = _world_points(flow(x), frame)
    for lines in (y, y.transpose(0, 2, 1)):
        panel.plot(lines[0], lines[1], color="tab:blue", linewidth=0.4, alpha=0.3)


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
