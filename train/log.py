"""The log of a training: TensorBoard, log lines, and a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rdmm.data.inputs import Inputs
from rdmm.dynamics.base import Dynamics, InitialConditions
from rdmm.spatial import ops
from rdmm.spatial.transform import displacement
from rdmm.types import ConfigError, Tensor
from train.checkpoint import Progress
from train.losses import Outcome

log = logging.getLogger(__name__)


def require_tensorboard() -> Any:
    """TensorBoard's writer of logs. Raises ConfigError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        text = "training needs TensorBoard: pip install 'rdmm[networks]' (in a checkout, '.[networks]')"
        raise ConfigError(f"{text}; {error}") from error
    return SummaryWriter


class Log:
    """The log of one network's training.

    Args:
        folder: folder of TensorBoard's files; None: nothing is logged, as in all but the first process of a distributed run.
        name: name of the network.
        total: number of steps.
        dynamics: the dynamics of a deformation network, for sigma(x).
    """

    def __init__(self, folder: Path | None, name: str, total: int, dynamics: Dynamics | None = None) -> None:
        self.name, self.total, self.dynamics = name, total, dynamics
        self.begin, self.taken = time.perf_counter(), 0
        self.bar: Any = None
        self.writer: Any = None
        if folder is not None:
            self.writer = require_tensorboard()(str(folder / "tensorboard"))

    @contextlib.contextmanager
    def open(self) -> Iterator[Log]:
        """Show a progress bar if there is a terminal; close TensorBoard's files at the end."""
        shown: Any = contextlib.nullcontext()
        if self.writer is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            shown = Bar(console=Console(stderr=True))
            self.bar = (shown, shown.add_task(self.name, total=self.total))
        try:
            with shown:
                yield self
        finally:
            if self.writer is not None:
                self.writer.close()

    def log_step(self, progress: Progress, trainer: Any, outcome: Outcome, length: float, batch: Inputs) -> None:
        if self.writer is None:
            return
        step = progress.step
        self.taken += 1
        if self.bar is not None:
            bar, task = self.bar
            bar.update(task, completed=step, description=f"{self.name}: loss {outcome.terms['loss']:.4f}")
        if step % trainer.log_every == 0 or step == 1:
            terms = {
                **outcome.terms,
                "gradient": length,
                "learning_rate": trainer.rate(step - 1, progress.begin),
                "skipped": progress.skipped,
            }
            for name, value in terms.items():
                self.writer.add_scalar(f"train/{name}", value, step)
            speed = (time.perf_counter() - self.begin) / self.taken
            log.info("%s step %d of %d: loss %.5f, %.2f s a step", self.name, step, self.total, outcome.terms["loss"], speed)
        if step % trainer.picture_every == 0:
            self._histograms(outcome.ic, step)
            self._picture("train", batch, outcome, step)

    def log_validation(self, progress: Progress, means: Mapping[str, float], shown: tuple[Inputs, Outcome] | None) -> None:
        if self.writer is None:
            return
        for name, value in means.items():
            self.writer.add_scalar(f"validation/{name}", value, progress.step)
        words = ", ".join(f"{k} {v:.4g}" for k, v in means.items() if math.isfinite(v))
        log.info("%s validation at step %d: %s%s", self.name, progress.step, words, " (best so far)" if progress.stale == 0 else "")
        if shown is not None:
            self._picture("validation", *shown, progress.step)

    def _histograms(self, conditions: list[InitialConditions], step: int) -> None:
        for k, ic in enumerate(conditions):
            self.writer.add_histogram(f"momentum/step{k}", ic.momentum.detach(), step)
            for i in range(0 if ic.weights is None else ic.weights.shape[1]):
                self.writer.add_histogram(f"preweights/step{k}_{i}", ic.weights[:, i].detach(), step)  # type: ignore[index]

    def _picture(self, part: str, batch: Inputs, outcome: Outcome, step: int) -> None:
        self.writer.add_figure(f"{part}/pair", draw_pair(batch, outcome, self.dynamics), step)


@torch.no_grad()
def draw_pair(batch: Inputs, outcome: Outcome, dynamics: Dynamics | None = None) -> Any:
    """A matplotlib figure of the first pair, the middle slice of the last axis: fixed, moving, warped with the deformed grid, log det J
    and, with pre-weights, sigma(x)."""
    from rdmm.report.figures import DIVERGING_COLORS, draw_deformed_grid, panels, show_slice
    from rdmm.report.slices import PLANES, log_jacobian, middle_slice

    grid = batch.pair.fixed.grid
    axis = PLANES[grid.ndim][-1][1]
    warped = batch.pair.moving.moved_by(outcome.transform, grid)
    u = displacement(outcome.transform, grid, batch.pair.fixed.data)[:1].float()
    shown: list[tuple[str, Tensor, dict[str, Any]]] = [
        ("fixed", batch.pair.fixed.data, {}),
        ("moving", batch.pair.moving.data, {}),
        ("warped", warped.data, {}),
        ("log det J", log_jacobian(u, grid)[:, None], {"cmap": DIVERGING_COLORS, "limits": (-1, 1)}),
    ]
    sigma = dynamics.initial_sigma(outcome.ic[0], batch.pair.fixed) if dynamics is not None and outcome.ic else None
    if sigma is not None:
        shown.append(("sigma(x) in mm", ops.resize(sigma, grid.shape), {"cmap": "viridis"}))
    figure, axes = panels(1, len(shown))
    for panel, (title, x, colors) in zip(axes[0], shown, strict=True):
        show_slice(panel, middle_slice(x[0, 0].float(), axis), axis, grid, title, fontsize=9, **colors)
        panel.set_axis_off()
    draw_deformed_grid(axes[0, 2], u, axis, grid, linewidth=0.4)
    figure.tight_layout()
    return figure
