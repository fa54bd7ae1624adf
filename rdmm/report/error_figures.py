"""A figure of the errors of several maps where the true one is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rdmm.report.figures import panels, show_slice
from rdmm.report.slices import axes_in_plane, middle_slice
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import Tensor


def errors_by_method(fixed: Image, truth: Tensor, regions: Mapping[str, Tensor], errors: Mapping[str, Tensor]) -> Any:
    """A matplotlib figure: the fixed image, the length of the true displacement, and the error of each method in the same colors.

    Args:
        truth: true displacement (1, d, *s) in domain units.
        regions: masks (1, 1, *s) whose outlines are drawn.
        errors: distances from the true map by method, (1, 1, *s) in mm.
    """
    grid = fixed.grid
    axis = int(np.argmax(np.round(grid.voxel, 3)))
    figure, axes = panels(1, len(errors) + 2, width=2.6, height=2.6)
    show_slice(axes[0, 0], middle_slice(fixed.data[0, 0], axis), axis, grid, "fixed", fontsize=9)
    length = grid.length * truth.square().sum(1).sqrt()
    show_slice(axes[0, 1], middle_slice(length[0], axis), axis, grid, "true displacement (mm)", cmap="viridis", colorbar=True, fontsize=9)
    slices = {method: middle_slice(error[0, 0], axis) for method, error in errors.items()}
    limits = (0.0, float(np.percentile(np.stack(list(slices.values())), 99)) or 1.0)
    for panel, (method, error) in zip(axes[0, 2:], slices.items(), strict=True):
        show_slice(panel, error, axis, grid, f"{method}: error (mm)", cmap="magma", limits=limits, colorbar=True, fontsize=9)
        for mask in regions.values():
            _outline(panel, middle_slice(mask[0, 0], axis), axis, grid)
    figure.tight_layout()
    return figure


def _outline(panel: Any, mask: np.ndarray, axis: int, grid: Grid) -> None:
    across, up = axes_in_plane(axis, grid)
    panel.contour(np.arange(grid.shape[across]), np.arange(grid.shape[up]), mask, [0.5], colors="white", linewidths=0.6)
