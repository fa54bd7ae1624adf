"""What notebooks and Python sessions show of a registration: a figure on the screen, and the result of a cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib

from rdmm.report.figures import DIVERGING_COLORS, draw_deformed_grid, panels, show_slice
from rdmm.report.html import format_value, load_template
from rdmm.report.slices import PLANES, ImageResult, middle_slice, scale_intensity
from rdmm.spatial.image import Image


def plot_images(fixed: Image, moving: Image, result: ImageResult) -> Any:
    """A matplotlib figure of pyplot: fixed, moving, warped, warped - fixed and the deformed grid, in each plane.

    Args:
        moving: the moving image before registration, on the fixed grid.
    """
    grid = fixed.grid
    scaled = [scale_intensity(x) for x in (fixed, moving, result.warped)]

    def draw(make: Callable[..., Any]) -> Any:
        figure, axes = panels(len(PLANES[grid.ndim]), 5, make=make)
        for row, (name, axis) in zip(axes, PLANES[grid.ndim], strict=True):
            a, b, c = (middle_slice(x, axis) for x in scaled)
            for panel, values, title in zip(row, (a, b, c), ("fixed", "moving", "warped"), strict=False):
                show_slice(panel, values, axis, grid, title, limits=(0, 1))
            show_slice(row[3], c - a, axis, grid, "warped - fixed", cmap=DIVERGING_COLORS, limits=(-1, 1))
            show_slice(row[4], a, axis, grid, "deformed grid", limits=(0, 1))
            draw_deformed_grid(row[4], result.displacement, axis, grid)
            row[0].set_ylabel(name)
        return figure

    return on_screen(draw)


def on_screen(draw: Callable[[Callable[..., Any]], Any]) -> Any:
    """The figure that ``draw`` draws, given pyplot's function that makes an empty one."""
    import matplotlib.pyplot as plt

    figure = draw(plt.figure)
    if "inline" in matplotlib.get_backend():  # a notebook shows what a cell returns, and would show an open figure once more
        plt.close(figure)
    return figure


def render_cell(title: str, grade: str, reasons: list[str], metrics: Mapping[str, Any], picture: str) -> str:
    """The HTML that a notebook shows for a registration: verdict, picture and metrics. ``picture`` is a base64 JPEG."""
    shown = [(k, format_value(v)) for k, v in metrics.items() if isinstance(v, float | int)]
    return load_template("cell.html").render(title=title, grade=grade, reasons=reasons, metrics=shown, picture=picture)
