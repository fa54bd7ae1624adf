"""Figures of matplotlib: slices, the deformed grid, log det J, sigma(x). Notebooks, studies and training show them; the pages of
registrations of images have lighter ones (``rdmm.report.images``).

The functions up to ``draw_deformed_grid`` draw one panel or encode one figure; rdmm, train and eval make all figures with them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from rdmm.report.slices import ImageResult, aspect, axes_in_plane, deformed_lines, log_jacobian, middle_slice
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import Tensor

DIVERGING_COLORS = "RdBu_r"


def encoded(figure: Any, form: Literal["png", "pdf"], dpi: int) -> bytes:
    """A matplotlib figure as a file, without the date and the names of programs."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if form == "png" else {"CreationDate": None, "Creator": None, "Producer": None}
    figure.savefig(buffer, format=form, dpi=dpi, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def png(figure: Any, dpi: int = 80) -> bytes:
    """Encode a matplotlib figure as PNG."""
    return encoded(figure, "png", dpi)


def base64_png(figure: Any) -> str:
    """Encode a matplotlib figure as base64 PNG."""
    return base64.b64encode(png(figure)).decode()


def panels(rows: int, columns: int, width: float = 3, height: float = 3, make: Callable[..., Any] = Figure) -> tuple[Any, np.ndarray]:
    """A figure of (rows, columns) axes without ticks, each of ``width`` by ``height`` inches.

    Args:
        make: makes the empty figure; figures of pyplot are shown on the user's screen, those of ``Figure`` are for files only.
    """
    figure = make(figsize=(width * columns, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for a in axes.flat:
        a.set_xticks([])
        a.set_yticks([])
    return figure, axes


def show_slice(
    panel: Any,
    values: np.ndarray,
    axis: int,
    grid: Grid,
    title: str,
    *,
    cmap: str = "gray",
    limits: tuple[float, float] | None = None,
    colorbar: bool = False,
    fontsize: float | str = "large",
) -> None:
    """Draw a slice (from ``middle_slice``) with the aspect ratio of its voxels.

    Args:
        limits: values of the lowest and highest color; None: the lowest and highest value of the slice.
    """
    low, high = limits or (None, None)
    shown = panel.imshow(values, cmap=cmap, vmin=low, vmax=high, origin="lower", aspect=aspect(axis, grid))
    panel.set_title(title, fontsize=fontsize)
    if colorbar:
        panel.figure.colorbar(shown, ax=panel, fraction=0.046)


def draw_deformed_grid(panel: Any, displacement: Tensor, axis: int, grid: Grid, lines: int = 40, linewidth: float = 0.5) -> None:
    """Draw the grid deformed by a displacement (1, d, *s), in the middle plane perpendicular to ``axis``, with about ``lines`` lines."""
    for line in deformed_lines(displacement, axis, grid, lines):
        panel.plot(*line.T, color="tab:orange", linewidth=linewidth)
    across, up = axes_in_plane(axis, grid)
    panel.set_xlim(-0.5, grid.shape[across] - 0.5)
    panel.set_ylim(-0.5, grid.shape[up] - 0.5)


def images_by_method(fixed: Image, moving: Image, results: Mapping[str, ImageResult]) -> Any:
    """A matplotlib figure that compares several methods on one pair, in one plane.

    The first row shows moving, moving - fixed, fixed. Each method has a row: warped with the deformed grid, warped - fixed, log det J. Then
    each method with pre-weights has a row: sigma(x) at t = 0 and t = 1. All panels of a kind have the same limits of color. The plane is
    perpendicular to the axis with the longest voxels.

    Args:
        moving: the moving image before registration, on the fixed grid.
    """
    grid = fixed.grid
    axis = int(np.argmax(np.round(grid.voxel, 3)))
    target, before = (middle_slice(x.data[0, 0], axis) for x in (fixed, moving))
    warped = {name: middle_slice(r.warped.data[0, 0], axis) for name, r in results.items()}
    logs = {name: middle_slice(log_jacobian(r.displacement, grid)[0], axis) for name, r in results.items()}
    sigmas = {name: [middle_slice(s[0, 0], axis) for s in r.sigmas] for name, r in results.items() if r.sigmas}
    gray = _limits([target, before, *warped.values()])
    change, growth = _symmetric([x - target for x in (before, *warped.values())], 100), _symmetric(list(logs.values()), 99.5)
    figure, rows = _rows_of_panels([3] * (1 + len(results)) + [2] * len(sigmas), target.shape, aspect(axis, grid))

    def draw(panel: Any, values: np.ndarray, title: str, cmap: str, limits: tuple[float, float], bar: str = "") -> None:
        show_slice(panel, values, axis, grid, title, cmap=cmap, limits=limits, fontsize=9)
        if bar:
            figure.colorbar(panel.images[0], ax=panel, fraction=0.046).set_label(bar, fontsize=8)

    draw(rows[0][0], before, "moving", "gray", gray)
    draw(rows[0][1], before - target, "moving - fixed", DIVERGING_COLORS, change, "intensity")
    draw(rows[0][2], target, "fixed", "gray", gray)
    for row, (name, result) in zip(rows[1:], results.items(), strict=False):
        draw(row[0], warped[name], f"{name}: warped", "gray", gray)
        draw_deformed_grid(row[0], result.displacement, axis, grid, lines=28)
        draw(row[1], warped[name] - target, "warped - fixed", DIVERGING_COLORS, change, "intensity")
        draw(row[2], logs[name], "log det J", DIVERGING_COLORS, growth, "red: larger in moving")
    widths = _limits([s for pair in sigmas.values() for s in pair]) if sigmas else (0.0, 1.0)
    for row, (name, pair) in zip(rows[1 + len(results) :], sigmas.items(), strict=True):
        for panel, values, t in zip(row, pair, (0, 1), strict=True):
            draw(panel, values, rf"{name}: $\sigma(x)$, t = {t}", "viridis", widths, "mm")
    return figure


def _rows_of_panels(counts: Sequence[int], shape: tuple[int, ...], stretch: float, width: float = 2.4) -> tuple[Any, list[Any]]:
    """A figure with ``counts[k]`` panels in row k, which share the row's width, for slices (vertical, horizontal) of voxels that are
    ``stretch`` times as high as wide."""
    height = width * float(np.clip(stretch * shape[0] / shape[1], 0.5, 2)) + 0.3
    figure = Figure(figsize=((width + 0.6) * max(counts), height * len(counts)), layout="constrained")
    parts = figure.subfigures(len(counts), 1, squeeze=False)[:, 0]
    rows = [np.atleast_1d(part.subplots(1, count)) for part, count in zip(parts, counts, strict=True)]
    for panel in (panel for row in rows for panel in row):
        panel.set_axis_off()
    return figure, rows


def _limits(slices: Sequence[np.ndarray]) -> tuple[float, float]:
    """The lowest and the highest value of all slices."""
    return min(float(x.min()) for x in slices), max(float(x.max()) for x in slices)


def _symmetric(slices: Sequence[np.ndarray], percentile: float) -> tuple[float, float]:
    """Limits around 0 that hold this percentage of the values: with less than 100, single voxels, as in a fold, do not set them."""
    limit = float(np.percentile(np.abs(np.concatenate([x.ravel() for x in slices])), percentile)) or 1.0
    return -limit, limit
