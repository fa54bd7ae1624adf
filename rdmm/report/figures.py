"""Figures of images and maps: slices, the deformed grid, log det J, sigma(x), the energy. Tensors in, PNG out.

The functions up to ``draw_deformed_grid`` draw one panel or encode one figure; rdmm, train and eval make all figures with them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import Tensor

PLANES = {2: [("plane", 1)], 3: [("sagittal", 0), ("coronal", 1), ("axial", 2)]}
"""For 2D and 3D: the name of each plane, and the axis perpendicular to it (ignored in 2D)."""

DIVERGING_COLORS = "RdBu_r"

THUMBNAIL_HEIGHT = 64
"""Height of a thumbnail in pixels, as pages/study.html shows it."""


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


def png(figure: Any, dpi: int = 80) -> bytes:
    """Encode a matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def base64_png(figure: Any) -> str:
    """Encode a matplotlib figure as base64 PNG."""
    return base64.b64encode(png(figure)).decode()


def gray_picture(values: np.ndarray) -> Any:
    """A Pillow image of values (rows, columns) in [0, 1], first row on top."""
    from PIL import Image as Pillow

    return Pillow.fromarray((255 * np.clip(values, 0, 1)).astype(np.uint8))


def base64_picture(picture: Any, kind: str) -> str:
    """Encode a Pillow image as base64; ``kind`` is PNG or JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


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
    identity = grid.identity(displacement)
    x, y = (
        (middle_slice(identity[0, i], axis) + middle_slice(displacement[0, i], axis)) / grid.spacing[i] for i in axes_in_plane(axis, grid)
    )
    step = max(1, max(x.shape) // lines)
    for lines_x, lines_y in ((x[::step], y[::step]), (x.T[::step], y.T[::step])):
        panel.plot(lines_x.T, lines_y.T, color="tab:orange", linewidth=linewidth)
    panel.set_xlim(-0.5, x.shape[1] - 0.5)
    panel.set_ylim(-0.5, x.shape[0] - 0.5)


def log_jacobian(displacement: Tensor, grid: Grid) -> Tensor:
    """log det J of x + u(x), (b, *s); smaller determinants, as in folds, are set to .001."""
    return ops.jacobian_determinant(displacement, grid).clamp_min(1e-3).log()


def intensity_range(x: Tensor) -> Tensor:
    """The percentiles 0.1 and 99.9 of x, (2,); large tensors are subsampled to about a million values."""
    values = x.flatten()[:: max(1, x.numel() // 1_000_000)].cpu().numpy()
    low, high = torch.as_tensor(np.quantile(values, (0.001, 0.999))).to(x)  # torch's would sort them
    return torch.stack([low, torch.maximum(high, low + 1e-12)])


def scale_intensity(image: Image) -> Tensor:
    """The first channel (*s), scaled to [0, 1]."""
    x = image.data[0, 0]
    low, high = intensity_range(x)
    return ((x - low) / (high - low)).clamp(0, 1)


def image_figures(
    fixed: Image,
    moving: Image,
    result: ImageResult,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> list[tuple[str, str]]:
    """(heading, base64 PNG) of every figure of a report.

    Args:
        moving: the moving image before registration, on the fixed grid.
        metrics: those of ``Registration.metrics``.
        history: terms of the energy of each iteration; the deformation's have the term "velocity".
    """
    grid = fixed.grid
    folds = f"folds: {metrics['folds_percent']:.3g} % of the voxels, {metrics['folded_cells_percent']:.3g} % of the cells"
    spread = f"SDlogJ {metrics['sd_log_jacobian_subject']:.3g} in the subject ({metrics['subject']})"
    figures = [
        ("Fixed, warped, moving; checkerboard and difference", _comparison(fixed, result.warped, moving)),
        (f"Deformed grid and log det J; {folds}; {spread}", _deformation(fixed, result.displacement)),
    ]
    if result.sigmas is not None:
        figures.append(("Local standard deviation of the regularizer, sigma(x) in mm, at t = 0 and t = 1", _sigma(result.sigmas, grid)))
    if history:
        figures.append(("Energy by iteration", _energy(history)))
    return figures


def _comparison(fixed: Image, warped: Image, moving: Image) -> str:
    grid = fixed.grid
    scaled = [scale_intensity(x) for x in (fixed, warped, moving)]
    planes = PLANES[grid.ndim]
    figure, axes = panels(len(planes), 5)
    for row, (name, axis) in zip(axes, planes, strict=True):
        a, b, c = (middle_slice(x, axis) for x in scaled)
        i, j = np.indices(a.shape)
        board = np.where((i * 8 // a.shape[0] + j * 8 // a.shape[1]) % 2 == 0, a, b)
        for panel, values, title in zip(row, (a, b, c, board), ("fixed", "warped", "moving", "checkerboard"), strict=False):
            show_slice(panel, values, axis, grid, title, limits=(0, 1))
        show_slice(row[4], b - a, axis, grid, "warped - fixed", cmap=DIVERGING_COLORS, limits=(-1, 1))
        row[0].set_ylabel(name)
    return base64_png(figure)


def _deformation(fixed: Image, displacement: Tensor) -> str:
    grid = fixed.grid
    log, scaled = log_jacobian(displacement, grid)[0], scale_intensity(fixed)
    limit = max(0.1, float(log.abs().max()))
    planes = PLANES[grid.ndim]
    figure, axes = panels(len(planes), 2)
    for row, (name, axis) in zip(axes, planes, strict=True):
        show_slice(row[0], middle_slice(scaled, axis), axis, grid, "deformed grid")
        draw_deformed_grid(row[0], displacement, axis, grid)
        row[0].set_ylabel(name)
        show_slice(row[1], middle_slice(log, axis), axis, grid, "log det J", cmap=DIVERGING_COLORS, limits=(-limit, limit), colorbar=True)
    return base64_png(figure)


def _sigma(sigmas: tuple[Tensor, Tensor], grid: Grid) -> str:
    planes = PLANES[grid.ndim]
    figure, axes = panels(len(planes), 2)
    limits = min(float(s.min()) for s in sigmas), max(float(s.max()) for s in sigmas)
    for row, (name, axis) in zip(axes, planes, strict=True):
        for panel, s, t in zip(row, sigmas, (0, 1), strict=True):
            show_slice(panel, middle_slice(s[0, 0], axis), axis, grid, f"sigma at t = {t}", cmap="viridis", limits=limits, colorbar=True)
        row[0].set_ylabel(name)
    return base64_png(figure)


def _energy(history: Sequence[Mapping[str, float]]) -> str:
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    of_deformation = [h for h in history if "velocity" in h]
    for name in ("total", "similarity", "velocity"):
        axes.plot([h[name] for h in of_deformation], label=name)
    axes.set_xlabel("iteration")
    if of_deformation and all(h["total"] > 0 for h in of_deformation):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # plain numbers: powers of ten as formulas cost a tenth of a second
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    axes.legend()
    return base64_png(figure)


def image_thumbnail(fixed: Image, warped: Image) -> str:
    """Fixed, warped and their difference (gray: zero) side by side in the last plane, as a small base64 JPEG."""
    grid = fixed.grid
    axis = PLANES[grid.ndim][-1][1]
    a, b = (middle_slice(scale_intensity(x), axis) for x in (fixed, warped))
    strip = np.concatenate([x[::-1] for x in (a, b, (b - a + 1) / 2)], 1)
    width = max(1, round(THUMBNAIL_HEIGHT * strip.shape[1] / strip.shape[0] / aspect(axis, grid)))
    return base64_picture(gray_picture(strip).resize((width, THUMBNAIL_HEIGHT)), "JPEG")


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
