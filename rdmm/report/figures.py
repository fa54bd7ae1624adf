"""Figures of matplotlib: slices, the deformed grid, log det J, sigma(x). Notebooks, studies and training show them; the pages of
registrations of images have lighter ones (``rdmm.report.images``).

The functions up to ``draw_deformed_grid`` draw one panel or encode one figure; rdmm, train and eval make all figures with them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rdmm.report.slices import ImageResult, aspect, axes_in_plane, deformed_lines, log_jacobian, middle_slice
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import Tensor

DIVERGING_COLORS = "RdBu_r"


def png(figure: Any, dpi: int = 80) -> bytes:
    """Encode a matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


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

    The first row shows moving, moving - fixed, fixed. Each method has a row: warped with the deformed grid, warped - fixed, log det J,
    and, if any method has pre-weights, sigma(x) at t = 0 and t = 1. The plane is perpendicular to the axis with the longest voxels.

    Args:
        moving: the moving image before registration, on the fixed grid.
    """
    grid = fixed.grid
    axis = int(np.argmax(np.round(grid.voxel, 3)))
    columns = 5 if any(r.sigmas for r in results.values()) else 3
    figure, axes = panels(len(results) + 1, columns, width=3.2)
    for panel in axes.flat:
        panel.set_axis_off()
    target, before = (middle_slice(x.data[0, 0], axis) for x in (fixed, moving))
    show_slice(axes[0, 0], before, axis, grid, "moving", fontsize=9)
    _show_difference(axes[0, 1], before - target, axis, grid, "moving - fixed")
    show_slice(axes[0, 2], target, axis, grid, "fixed", fontsize=9)
    for row, (name, result) in zip(axes[1:], results.items(), strict=True):
        warped = middle_slice(result.warped.data[0, 0], axis)
        show_slice(row[0], warped, axis, grid, f"{name}: warped, with the grid", fontsize=9)
        draw_deformed_grid(row[0], result.displacement, axis, grid, lines=36)
        _show_difference(row[1], warped - target, axis, grid, f"{name}: warped - fixed")
        log = middle_slice(log_jacobian(result.displacement, grid)[0], axis)
        title = "log det J (red: larger in the moving image)"
        show_slice(row[2], log, axis, grid, title, cmap=DIVERGING_COLORS, limits=(-1, 1), colorbar=True, fontsize=9)
        for panel, sigma, t in zip(row[3:], result.sigmas or (), (0, 1), strict=False):
            title = f"{name}: sigma(x) in mm, t = {t}"
            show_slice(panel, middle_slice(sigma[0, 0], axis), axis, grid, title, cmap="viridis", colorbar=True, fontsize=9)
    figure.tight_layout()
    return figure


def _show_difference(panel: Any, difference: np.ndarray, axis: int, grid: Grid, title: str) -> None:
    """Draw a slice of differences, with white at 0."""
    limit = float(np.abs(difference).max()) or 1.0
    show_slice(panel, difference, axis, grid, title, cmap=DIVERGING_COLORS, limits=(-limit, limit), fontsize=9)
