"""What the page of a registration of images shows: slices, the deformed grid, log det J, sigma(x), the energy. Tensors in, pictures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rdmm.report.sheet import DIVERGING, GRAY, SEQUENTIAL, Panel, Scale, base64_picture, chart, gray_picture, picture, sheet, with_lines
from rdmm.report.slices import PLANES, ImageResult, aspect, deformed_lines, log_jacobian, middle_slice, scale_intensity
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import Tensor

INTENSITY, DIFFERENCE = Scale(0, 1, GRAY), Scale(-1, 1, DIVERGING)

THUMBNAIL_HEIGHT = 64
"""Height of a thumbnail in pixels, as pages/study.html shows it."""

WIDEST = 4096
"""Width of a thumbnail in pixels at most; of a wider image, all is shown, narrower than it is."""


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
    folds = f"folds: {metrics['folds_percent']:.3g} % of the voxels, {metrics['folded_cells_percent']:.3g} % of the cells"
    spread = f"SDlogJ {metrics['sd_log_jacobian_subject']:.3g} in the subject ({metrics['subject']})"
    figures = [
        ("Fixed, warped, moving; checkerboard and difference", _comparison(fixed, result.warped, moving)),
        (f"Deformed grid and log det J; {folds}; {spread}", _deformation(fixed, result.displacement)),
    ]
    if result.sigmas is not None:
        heading = "Local standard deviation of the regularizer, sigma(x) in mm, at t = 0 and t = 1"
        figures.append((heading, _sigma(result.sigmas, fixed.grid)))
    if history:
        figures.append(("Energy by iteration", _energy(history)))
    return [(heading, base64_picture(figure, "PNG")) for heading, figure in figures]


def _titled(name: str, title: str, grid: Grid) -> str:
    """The title of the first panel of a row, which names the plane where there are several."""
    return title if grid.ndim == 2 else f"{name}: {title}"


def _comparison(fixed: Image, warped: Image, moving: Image) -> Any:
    grid = fixed.grid
    scaled = [scale_intensity(x) for x in (fixed, warped, moving)]
    rows = []
    for name, axis in PLANES[grid.ndim]:
        a, b, c = (middle_slice(x, axis) for x in scaled)
        i, j = np.indices(a.shape)
        board = np.where((i * 8 // a.shape[0] + j * 8 // a.shape[1]) % 2 == 0, a, b)
        titles = (_titled(name, "fixed", grid), "warped", "moving", "checkerboard")
        row = [Panel(title, picture(x, INTENSITY, aspect(axis, grid))) for title, x in zip(titles, (a, b, c, board), strict=True)]
        rows.append([*row, Panel("warped - fixed", picture(b - a, DIFFERENCE, aspect(axis, grid)))])
    return sheet(rows)


def _deformation(fixed: Image, displacement: Tensor) -> Any:
    grid = fixed.grid
    log, scaled = log_jacobian(displacement, grid)[0], scale_intensity(fixed)
    limit = max(0.1, float(log.abs().max()))
    colors, rows = Scale(-limit, limit, DIVERGING), []
    for name, axis in PLANES[grid.ndim]:
        values = middle_slice(scaled, axis)
        below = picture(values, INTENSITY, aspect(axis, grid))
        voxel = np.array([below.width / values.shape[1], -below.height / values.shape[0]])
        lines = [(line + 0.5) * voxel + (0, below.height) for line in deformed_lines(displacement, axis, grid)]
        panel = Panel(_titled(name, "deformed grid", grid), with_lines(below, lines))
        rows.append([panel, Panel("log det J", picture(middle_slice(log, axis), colors, aspect(axis, grid)), colors)])
    return sheet(rows)


def _sigma(sigmas: tuple[Tensor, Tensor], grid: Grid) -> Any:
    colors = Scale(min(float(s.min()) for s in sigmas), max(float(s.max()) for s in sigmas), SEQUENTIAL)
    rows = []
    for name, axis in PLANES[grid.ndim]:
        titles = _titled(name, "sigma at t = 0", grid), "sigma at t = 1"
        pictures = (picture(middle_slice(s[0, 0], axis), colors, aspect(axis, grid)) for s in sigmas)
        rows.append([Panel(title, shown, colors) for title, shown in zip(titles, pictures, strict=True)])
    return sheet(rows)


def _energy(history: Sequence[Mapping[str, float]]) -> Any:
    of_deformation = [h for h in history if "velocity" in h]
    series = {name: [h[name] for h in of_deformation] for name in ("total", "similarity", "velocity")}
    return chart(series, "iteration", logarithmic=bool(of_deformation) and all(h["total"] > 0 for h in of_deformation))


def image_thumbnail(fixed: Image, warped: Image) -> str:
    """Fixed, warped and their difference (gray: zero) side by side in the last plane, as a small base64 JPEG."""
    grid = fixed.grid
    axis = PLANES[grid.ndim][-1][1]
    a, b = (middle_slice(scale_intensity(x), axis) for x in (fixed, warped))
    strip = np.concatenate([x[::-1] for x in (a, b, (b - a + 1) / 2)], 1)
    width = min(max(1, round(THUMBNAIL_HEIGHT * strip.shape[1] / strip.shape[0] / aspect(axis, grid))), WIDEST)
    return base64_picture(gray_picture(strip).resize((width, THUMBNAIL_HEIGHT)), "JPEG")
