"""Figures of a study: box plots over the cases, and pictures of a case by every method."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from eval.tables import SHOWN, Row, groups, values
from rdmm.io import write_atomically
from rdmm.registration.images import Registration
from rdmm.registration.shapes import ShapeRegistration, by_method
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BOXES = ("dice", "region_dice", "tre_mm", "tre_liver_mm", "tre_outside_mm", "sd_log_jacobian_outside")


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def boxes(rows: Sequence[Row], out: Path) -> None:
    """One ``boxes_<data>.png`` for each data set with three cases or more: its measures by method."""
    for data in dict.fromkeys(r["data"] for r in rows):
        of_data = {m: g for (d, m), g in groups(rows).items() if d == data}
        shown = [k for k in BOXES if all(len(values(g, k)) > 2 for g in of_data.values())]
        if not shown:
            continue
        figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.6), squeeze=False)
        for panel, key in zip(axes[0], shown, strict=True):
            panel.boxplot([values(g, key) for g in of_data.values()], tick_labels=list(of_data), widths=0.6)
            panel.set_title(SHOWN[key])
            panel.grid(axis="y", alpha=0.3)
        figure.suptitle(f"{data}: {max(len(g) for g in of_data.values())} pairs; box: quartiles, line: median")
        figure.tight_layout()
        _save(figure, out / f"boxes_{data}.png")


def case(done: Mapping[str, Registration | ShapeRegistration], path: Path) -> None:
    """One picture of a case by every method."""
    images = {k: r for k, r in done.items() if isinstance(r, Registration)}
    if images:
        _of_images(images, path)
    found = {k: r for k, r in done.items() if isinstance(r, ShapeRegistration)}
    if found:
        figure = by_method(found)
        _save(figure, path)


def _of_images(done: Mapping[str, Registration], path: Path) -> None:
    """Before: moving, its difference to fixed, fixed. A row for each method: warped with the deformed grid, difference,
    log det J, and of RDMM sigma(x) at t = 0 and t = 1."""
    sigmas = {name: r.sigmas() for name, r in done.items()}
    columns = 5 if any(sigmas.values()) else 3
    figure, axes = plt.subplots(len(done) + 1, columns, figsize=(3.2 * columns, 3 * (len(done) + 1)), squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    pair = next(iter(done.values())).pair
    grid = pair.fixed.grid
    fixed, before = (_plane(x, grid) for x in (pair.fixed.data, pair.moving.moved_by(pair.initial, grid).data))
    _show(axes[0, 0], before, grid, "gray", "moving")
    _show(axes[0, 1], before - fixed, grid, "RdBu_r", "moving - fixed")
    _show(axes[0, 2], fixed, grid, "gray", "fixed")
    for row, (name, registration) in zip(axes[1:], done.items(), strict=True):
        u = registration._maps[0]
        warped = _plane(registration.warped.data, grid)
        _show(row[0], warped, grid, "gray", f"{name}: warped, with the grid")
        _lines(row[0], u, grid)
        _show(row[1], warped - fixed, grid, "RdBu_r", f"{name}: warped - fixed")
        log = _plane(ops.jacobian_determinant(u, grid)[None].clamp_min(1e-3).log(), grid)
        shown = _show(row[2], log, grid, "RdBu_r", "log det J (red: moving is larger)", 1.0)
        figure.colorbar(shown, ax=row[2], fraction=0.046)
        for panel, sigma, t in zip(row[3:], sigmas[name] or (), (0, 1), strict=False):
            shown = _show(panel, _plane(sigma, grid), grid, "viridis", f"{name}: sigma(x) in mm, t = {t}")
            figure.colorbar(shown, ax=panel, fraction=0.046)
    figure.tight_layout()
    _save(figure, path)


def _axis(grid: Grid) -> int | None:
    """The axis across which a 3D grid is cut: the one of the longest voxels, else the first."""
    return None if grid.ndim == 2 else int(np.argmax(np.round(grid.voxel, 3)))


def _plane(x: Tensor, grid: Grid) -> np.ndarray:
    """The middle slice of x (1, 1, *s), first axis to the right, second up."""
    array, axis = x[0, 0].detach().cpu().numpy(), _axis(grid)
    return (array if axis is None else np.take(array, array.shape[axis] // 2, axis)).T


def _show(panel: Any, picture: np.ndarray, grid: Grid, colours: str, title: str, limit: float | None = None) -> Any:
    kept = [h for i, h in enumerate(grid.voxel) if i != _axis(grid)]
    limit = limit or float(np.abs(picture).max()) or 1.0
    bounds = {"vmin": -limit, "vmax": limit} if colours == "RdBu_r" else {}
    panel.set_title(title, fontsize=9)
    return panel.imshow(picture, cmap=colours, origin="lower", aspect=kept[1] / kept[0], **bounds)


def _lines(panel: Any, u: Tensor, grid: Grid) -> None:
    kept = [i for i in range(grid.ndim) if i != _axis(grid)]
    y = (grid.identity(u) + u)[0]
    x0, x1 = (_plane(y[i][None, None], grid) / grid.spacing[i] for i in kept)
    step = max(1, max(x0.shape) // 36)
    for a, b in ((x0[::step], x1[::step]), (x0.T[::step], x1.T[::step])):
        panel.plot(a.T, b.T, color="tab:orange", linewidth=0.5)
    panel.set_xlim(-0.5, x0.shape[1] - 0.5)
    panel.set_ylim(-0.5, x0.shape[0] - 0.5)
