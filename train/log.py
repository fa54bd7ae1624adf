"""The log of a training: its loggers, log lines, and a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from rdmm.data.inputs import Inputs
from rdmm.dynamics.base import Dynamics, InitialConditions
from rdmm.runtime.resources import peak_memory
from rdmm.spatial import ops
from rdmm.spatial.transform import displacement
from rdmm.types import Tensor
from train.checkpoint import Progress
from train.loggers import Logger, Run
from train.losses import Outcome

log = logging.getLogger(__name__)

T = TypeVar("T")


class Log:
    """The log of one network's training: its loggers, lines, and a progress bar on a terminal.

    Args:
        name: of the network.
        total: number of steps.
        run: what the loggers are told; None: nothing is logged, as in all but the first process of a distributed run.
        loggers: where the numbers go.
        dynamics: the dynamics of a deformation network, for sigma(x).
    """

    def __init__(
        self, name: str, total: int, run: Run | None = None, loggers: Sequence[Logger] = (), dynamics: Dynamics | None = None
    ) -> None:
        self.name, self.total, self.run, self.loggers, self.dynamics = name, total, run, loggers, dynamics
        self.bar: Any = None
        self.begin = self.data = self.busy = 0.0
        self.taken = 0

    @contextlib.contextmanager
    def open(self, step: int) -> Iterator[None]:
        """Start the loggers and show a progress bar if there is a terminal; close the loggers at the end.

        Args:
            step: the number of steps that were taken before.
        """
        with contextlib.ExitStack() as stack:
            if self.run is not None:
                for logger in self.loggers:
                    logger.start(replace(self.run, step=step))
                    stack.callback(logger.close)
                if sys.stderr.isatty():
                    from rich.console import Console
                    from rich.progress import Progress as Bar

                    shown = stack.enter_context(Bar(console=Console(stderr=True)))
                    self.bar = (shown, shown.add_task(self.name, total=self.total, completed=step))
            yield

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches of each step. A step's time begins with the wait for its data, and ends with ``log_step``."""
        while True:
            self.begin = time.perf_counter()
            found = next(batches, None)
            if found is None:
                return
            self.data += time.perf_counter() - self.begin
            yield found

    def log_step(self, progress: Progress, trainer: Any, outcome: Outcome, length: float, batch: Inputs) -> None:
        """After a step: its loss at every ``log_every``, pictures at every ``picture_every``."""
        if self.run is None:
            return
        step = progress.step
        self.taken += 1
        self.busy += time.perf_counter() - self.begin
        if self.bar is not None:
            bar, task = self.bar
            bar.update(task, completed=step, description=f"{self.name}: loss {outcome.terms['loss']:.4f}")
        if step % trainer.log_every == 0 or step == 1:
            terms = {**outcome.terms, "gradient": length, "skipped": progress.skipped}
            terms["learning_rate"] = trainer.rate(step - 1, progress.begin)
            costs = self._costs(batch.pair.fixed.data.device)
            self._scalars({**{f"train/{k}": v for k, v in terms.items()}, **costs}, step)
            words = "{time/step_s:.2f} s a step, of which {time/data_s:.2f} s for data, peak memory {memory/peak_GiB:.2f} GiB"
            log.info("%s step %d of %d: loss %.5f, %s", self.name, step, self.total, outcome.terms["loss"], words.format_map(costs))
        if step % trainer.picture_every == 0:
            self._histograms(outcome.ic, step)
            self._picture("train", batch, outcome, step)

    def _costs(self, device: torch.device) -> dict[str, float]:
        """Seconds of a step, and of its wait for data, since the last call; the largest memory so far, of the device or the process."""
        taken, busy, data = self.taken, self.busy, self.data
        self.taken, self.busy, self.data = 0, 0.0, 0.0
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
        return {"time/step_s": busy / taken, "time/data_s": data / taken, "memory/peak_GiB": memory / 2**30}

    def log_validation(self, progress: Progress, means: Mapping[str, float], score: float, shown: tuple[Inputs, Outcome] | None) -> None:
        """After a validation: the means of its terms, the score that chooses the best model, and a picture."""
        if self.run is None:
            return
        self._scalars({f"validation/{name}": value for name, value in {**means, "score": score}.items()}, progress.step)
        words = ", ".join(f"{k} {v:.4g}" for k, v in means.items() if math.isfinite(v))
        log.info("%s validation at step %d: %s%s", self.name, progress.step, words, " (best so far)" if progress.stale == 0 else "")
        if shown is not None:
            self._picture("validation", *shown, progress.step)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.scalars(values, step)

    def _histograms(self, conditions: list[InitialConditions], step: int) -> None:
        for k, ic in enumerate(conditions):
            weights = () if ic.weights is None else ic.weights.detach().unbind(1)
            parts = {f"momentum/step{k}": ic.momentum.detach(), **{f"preweights/step{k}_{i}": w for i, w in enumerate(weights)}}
            for name, values in parts.items():
                for logger in self.loggers:
                    logger.histogram(name, values, step)

    def _picture(self, part: str, batch: Inputs, outcome: Outcome, step: int) -> None:
        if self.loggers:
            figure = draw_pair(batch, outcome, self.dynamics)
        for logger in self.loggers:
            logger.figure(f"{part}/pair", figure, step)


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
