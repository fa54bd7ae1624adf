"""report.html: one self-contained page that shows what a registration did. Names and texts are escaped (jinja2)."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib
import numpy as np
import torch

from rdmm import ops
from rdmm.grid import Grid
from rdmm.types import Tensor

if TYPE_CHECKING:
    from rdmm.registration import Registration

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PLANES = {2: [("plane", 1)], 3: [("sagittal", 0), ("coronal", 1), ("axial", 2)]}

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>rdmm: {{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em } img { max-width: 100%; }
table { border-collapse: collapse; } td { padding: .15em 1em .15em 0; border-bottom: 1px solid #ddd; vertical-align: top; }
pre { background: #f5f5f5; padding: 1em; overflow: auto; max-height: 30em; } .bad { color: #b00; font-weight: bold; }
</style></head><body>
<h1>{{ title }}</h1>
<p>Status: <span class="{{ '' if status == 'done' else 'bad' }}">{{ status }}</span>. It pulls back: fixed point &rarr; moving point.</p>
{% for heading, picture in pictures %}<h2>{{ heading }}</h2><img alt="{{ heading }}" src="data:image/png;base64,{{ picture }}">{% endfor %}
<h2>Measures</h2><table>{% for name, value in metrics %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Run</h2><table>{% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Configuration</h2><pre>{{ config }}</pre>
</body></html>"""


def render(summary: dict[str, Any], figures: list[tuple[str, str]]) -> str:
    """The page as text, of what run.json holds and figures (heading, base64 PNG)."""
    import yaml

    files = summary["inputs"]
    title = f"{files.get('moving', {}).get('path', 'moving')} onto {files.get('fixed', {}).get('path', 'fixed')}"
    numbers = [(k, f"{v:.5g}" if isinstance(v, float) else str(v)) for k, v in summary["metrics"].items()]
    facts = [(k, f"{v['path']} (sha256 {v['sha256'][:16]}…)") for k, v in files.items()]
    facts += [(f"seconds, {k}", f"{v:.2f}") for k, v in summary["seconds"].items()]
    facts += [("peak memory", f"{summary['peak_memory_mb']:.0f} MB"), ("device", summary["device"]), ("seed", summary["seed"])]
    facts += [(f"version of {k}", v) for k, v in summary["versions"].items()]
    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    config = yaml.safe_dump(summary["config"], sort_keys=False)
    return page.render(title=title, status=summary["status"], pictures=figures, metrics=numbers, facts=facts, config=config)


def pictures(registration: Registration) -> list[tuple[str, str]]:
    """(heading, base64 PNG) of every figure."""
    out = [
        ("Fixed, warped, moving; checkerboard and difference", _images(registration)),
        ("Deformed grid and log det J", _deformation(registration)),
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


def _png(figure: Any) -> str:
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


def _unit(x: Tensor) -> Tensor:
    low, high = torch.quantile(x.flatten()[:: max(1, x.numel() // 1_000_000)], torch.tensor([0.001, 0.999]).to(x))
    return ((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def _images(registration: Registration) -> str:
    from rdmm.transform import Identity

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
    return _png(figure)


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
    return _png(figure)


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
    return _png(figure)


def _curve(registration: Registration) -> str:
    figure, axes = plt.subplots(figsize=(7, 3))
    history = [h for h in registration.result.history if "velocity" in h]
    for name in ("total", "similarity", "velocity"):
        axes.plot([h[name] for h in history], label=name)
    axes.set_xlabel("iteration")
    axes.set_yscale("log" if history and all(h["total"] > 0 for h in history) else "linear")
    axes.legend()
    return _png(figure)
