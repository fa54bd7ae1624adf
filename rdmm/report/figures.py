"""Pictures of a registration of images: for its report, for the list of a study, and on its way from t = 0 to t = 1."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch

from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor

if TYPE_CHECKING:
    from rdmm.registration.images import Registration


matplotlib.use("Agg")

PLANES = {2: [("plane", 1)], 3: [("sagittal", 0), ("coronal", 1), ("axial", 2)]}


def pictures(registration: Registration) -> list[tuple[str, str]]:
    """(heading, base64 PNG) of every figure."""
    out = [
        ("Fixed, warped, moving; checkerboard and difference", _images(registration)),
        (_folds(registration), _deformation(registration)),
    ]
    sigmas = registration.sigmas()
    if sigmas is not None:
        out.append(
            (
                "Local standard deviation of the regularizer, sigma(x) in mm, at t = 0 and t = 1",
                _sigma(sigmas, registration.pair.fixed.grid),
            )
        )
    if registration.result.history:
        out.append(("Energy by iteration", _curve(registration)))
    return out


def _folds(registration: Registration) -> str:
    m = registration.metrics
    return f"Deformed grid and log det J; folds: {m['folds_percent']:.3g} % of the voxels, {m['folded_cells_percent']:.3g} % of the cells"


def figure_png(figure: Any) -> str:
    """A matplotlib figure, closed, as base64 PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _slice(x: Tensor, axis: int, grid: Grid) -> np.ndarray:
    """The middle slice of x (*s) across an axis, first axis to the right, second up."""
    array = x.detach().cpu().numpy()
    if grid.ndim == 3:
        array = np.take(array, array.shape[axis] // 2, axis=axis)
    return array.T


def _aspect(axis: int, grid: Grid) -> float:
    kept = [h for i, h in enumerate(grid.voxel) if grid.ndim == 2 or i != axis]
    return kept[1] / kept[0]


def _panels(rows: int, columns: int) -> tuple[Any, np.ndarray]:
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3 * rows), squeeze=False)
    for a in axes.flat:
        a.set_xticks([])
        a.set_yticks([])
    return figure, axes


def intensity_range(x: Tensor) -> Tensor:
    """Nearly the lowest and nearly the highest value."""
    low, high = torch.quantile(x.flatten()[:: max(1, x.numel() // 1_000_000)], torch.tensor([0.001, 0.999]).to(x))
    return torch.stack([low, torch.maximum(high, low + 1e-12)])


def _unit(x: Tensor) -> Tensor:
    low, high = intensity_range(x)
    return ((x - low) / (high - low)).clamp(0, 1)


def _images(registration: Registration) -> str:
    from rdmm.spatial.transform import Identity

    pair = registration.pair
    grid = pair.fixed.grid
    before = _unit(pair.moved_by(Identity()).data[0, 0])
    fixed, warped = _unit(pair.fixed.data[0, 0]), _unit(registration.warped.data[0, 0])
    planes = PLANES[grid.ndim]
    figure, axes = _panels(len(planes), 5)
    for row, (name, axis) in zip(axes, planes, strict=True):
        a, b, c = (_slice(x, axis, grid) for x in (fixed, warped, before))
        i, j = np.indices(a.shape)
        board = np.where((i * 8 // a.shape[0] + j * 8 // a.shape[1]) % 2 == 0, a, b)
        for panel, picture, title in zip(
            row, (a, b, c, board, b - a), ("fixed", "warped", "moving", "checkerboard", "warped - fixed"), strict=True
        ):
            signed = title == "warped - fixed"
            panel.imshow(
                picture, cmap="RdBu_r" if signed else "gray", vmin=-1 if signed else 0, vmax=1, origin="lower", aspect=_aspect(axis, grid)
            )
            panel.set_title(title)
        row[0].set_ylabel(name)
    return figure_png(figure)


def _deformation(registration: Registration) -> str:
    grid, u = registration.pair.fixed.grid, registration._maps[0]
    log = ops.jacobian_determinant(u, grid)[0].clamp_min(1e-3).log()
    fixed, index = _unit(registration.pair.fixed.data[0, 0]), (grid.identity(u) + u)[0]
    planes = PLANES[grid.ndim]
    figure, axes = _panels(len(planes), 2)
    limit = max(0.1, float(log.abs().max()))
    for row, (name, axis) in zip(axes, planes, strict=True):
        row[0].imshow(_slice(fixed, axis, grid), cmap="gray", origin="lower", aspect=_aspect(axis, grid))
        kept = [i for i in range(grid.ndim) if grid.ndim == 2 or i != axis]
        x, y = (_slice(index[i], axis, grid) / grid.spacing[i] for i in kept)
        step = max(1, max(x.shape) // 40)
        for lines_x, lines_y in ((x[::step], y[::step]), (x.T[::step], y.T[::step])):
            row[0].plot(lines_x.T, lines_y.T, color="tab:orange", linewidth=0.5)
        row[0].set_xlim(-0.5, x.shape[1] - 0.5)
        row[0].set_ylim(-0.5, x.shape[0] - 0.5)
        row[0].set_title("deformed grid")
        row[0].set_ylabel(name)
        shown = row[1].imshow(_slice(log, axis, grid), cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect=_aspect(axis, grid))
        row[1].set_title("log det J")
        figure.colorbar(shown, ax=row[1], fraction=0.046)
    return figure_png(figure)


def _sigma(sigmas: tuple[Tensor, Tensor], grid: Grid) -> str:
    planes = PLANES[grid.ndim]
    figure, axes = _panels(len(planes), 2)
    low, high = min(float(s.min()) for s in sigmas), max(float(s.max()) for s in sigmas)
    for row, (name, axis) in zip(axes, planes, strict=True):
        for panel, s, t in zip(row, sigmas, (0, 1), strict=True):
            shown = panel.imshow(
                _slice(s[0, 0], axis, grid), cmap="viridis", vmin=low, vmax=high, origin="lower", aspect=_aspect(axis, grid)
            )
            panel.set_title(f"sigma at t = {t}")
            figure.colorbar(shown, ax=panel, fraction=0.046)
        row[0].set_ylabel(name)
    return figure_png(figure)


def _curve(registration: Registration) -> str:
    figure, axes = plt.subplots(figsize=(7, 3))
    history = [h for h in registration.result.history if "velocity" in h]
    for name in ("total", "similarity", "velocity"):
        axes.plot([h[name] for h in history], label=name)
    axes.set_xlabel("iteration")
    axes.set_yscale("log" if history and all(h["total"] > 0 for h in history) else "linear")
    axes.legend()
    return figure_png(figure)


def thumbnail(registration: Registration) -> str:
    """Fixed, warped and their difference (grey: none) side by side, a small base64 JPEG."""
    grid = registration.pair.fixed.grid
    axis = PLANES[grid.ndim][-1][1]
    a, b = (_slice(_unit(x.data[0, 0]), axis, grid) for x in (registration.pair.fixed, registration.warped))
    strip = np.concatenate([x[::-1] for x in (a, b, (b - a + 1) / 2)], 1)
    picture = grey_picture(strip)
    width = max(1, round(HEIGHT * strip.shape[1] / strip.shape[0] / _aspect(axis, grid)))
    return encoded(picture.resize((width, HEIGHT)), "JPEG")


def grey_picture(values: np.ndarray) -> Any:
    """Values in [0, 1], first row on top."""
    from PIL import Image as Pillow

    return Pillow.fromarray((255 * np.clip(values, 0, 1)).astype(np.uint8))


def encoded(picture: Any, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


HEIGHT = 64


def shrunk(picture: str, rows: int) -> str:
    """The first of ``rows`` rows of a base64 PNG as a small base64 JPEG."""
    from PIL import Image as Pillow

    whole = Pillow.open(io.BytesIO(base64.b64decode(picture))).convert("L")
    row = whole.crop((0, 0, whole.width, whole.height // rows))
    return encoded(row.resize((max(1, HEIGHT * row.width // row.height), HEIGHT)), "JPEG")
