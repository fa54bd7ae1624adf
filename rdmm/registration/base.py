"""The base class of finished registrations of images and of shapes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

from rdmm.data.inputs import Inputs, ShapeInputs
from rdmm.dynamics.base import Dynamics
from rdmm.io.files import Outputs, write_text, written_aside
from rdmm.registration.outputs import Output, OutputFile
from rdmm.registration.record import Provenance, run_summary, write_run
from rdmm.registration.verdict import Verdict
from rdmm.stages.base import Result
from rdmm.types import OutputError

PAGE = "report.html"
PAGE_FILES = ("run.json", PAGE)

METRICS_SHOWN = (
    "dice_before",
    "dice",
    "tre_before_mm",
    "tre_mm",
    "distance_before_mm",
    "distance_after_mm",
    "sd_log_jacobian_subject",
    "folds_percent",
)
"""Metrics in the short text of a registration."""


@dataclass(frozen=True, eq=False)
class FinishedRegistration(ABC):
    """A finished registration.

    Attributes:
        inputs: the inputs that were registered.
        result: the result of the stages.
        config: the composed settings, as plain data.
        provenance: command, seed, device and warnings of the run.
        output: which optional files are written.
        status: ``done`` or ``interrupted``.
        frames_are_points: whether the animation shows points instead of lines.
    """

    frames_are_points: ClassVar[bool] = False
    inputs: Inputs | ShapeInputs
    result: Result
    config: Mapping[str, Any]
    provenance: Provenance = field(default_factory=Provenance)
    output: Output = field(default_factory=Output)
    status: str = "done"

    @property
    def energy(self) -> dict[str, float]:
        """Terms of the objective at the result."""
        return self.result.energy

    @property
    def dynamics(self) -> Dynamics | None:
        """The dynamics of the last deformable stage, whose initial conditions are ``result.ic``."""
        return self.result.dynamics

    @property
    @abstractmethod
    def is_deformed(self) -> bool:
        """Whether the map is more than an affine one, so that a warp is written."""

    @cached_property
    @abstractmethod
    def metrics(self) -> dict[str, Any]:
        """Metrics of accuracy and regularity, by name."""

    @cached_property
    @abstractmethod
    def verdict(self) -> Verdict:
        """Whether the result can be trusted, with reasons."""

    @abstractmethod
    def compute(self) -> None:
        """Compute what may fail, so that a failure comes before the first file is written."""

    @abstractmethod
    def files(self) -> Sequence[OutputFile]:
        """The files that this registration may write (``rdmm.registration.outputs``), in the order of writing."""

    @abstractmethod
    def figures(self) -> list[tuple[str, str]]:
        """(heading, base64 PNG) of every figure of the report."""

    @abstractmethod
    def frames(self) -> list[dict[str, Any]]:
        """Frames of the animation from t = 0 to t = 1, as data for the page's script; [] without a geodesic."""

    @abstractmethod
    def thumbnail(self) -> str:
        """A small base64 JPEG for index.html."""

    @abstractmethod
    def plot(self) -> Any:
        """A matplotlib figure: before, after, and the deformed grid. A notebook shows it; a script calls ``matplotlib.pyplot.show()``."""

    def __repr__(self) -> str:
        shown = [f"{k} {v:.3g}" for k, v in self.metrics.items() if k in METRICS_SHOWN]
        seconds = self.result.seconds.get("total", float("nan"))
        return f"{type(self).__name__}({'; '.join([f'verdict {self.verdict.grade}', *shown, f'{seconds:.2g} s'])})"

    def _repr_html_(self) -> str:
        from rdmm.report.interactive import render_cell

        return render_cell(type(self).__name__, self.verdict.grade, list(self.verdict.reasons), self.metrics, self.thumbnail())

    @final
    def render_report(self, summary: Mapping[str, Any]) -> str:
        """The HTML of report.html. ``summary`` is the content of run.json."""
        from rdmm.report.html import render

        return render(summary, self.figures(), self.frames(), points=self.frames_are_points)

    @final
    def summary(self) -> dict[str, Any]:
        """The content of run.json, without the checksums of the written files."""
        return run_summary(self.inputs, self.result, self.config, self.provenance, self.status, self.metrics, self.verdict)

    @final
    def save(self, out: str | os.PathLike[str], *, overwrite: bool = False, report: bool = True) -> list[Path]:
        """Write the results under the prefix or folder ``out`` (README, "Use", lists the files).

        Args:
            out: prefix of the file names, or a folder (ends in /).
            overwrite: replace existing files.
            report: also write report.html.

        Returns:
            the paths of the written files, run.json last.

        Raises:
            OutputError: a file already exists, or cannot be written.
        """
        if not isinstance(out, str | os.PathLike):
            raise OutputError(f"out is of type {type(out).__name__}; the prefix of the file names, or a folder that ends in /, is expected")
        return self.write(out, overwrite=overwrite, report=report)[0]

    @final
    def write(self, out: str | os.PathLike[str], *, overwrite: bool, report: bool = True) -> tuple[list[Path], dict[str, Any]]:
        """Like ``save``, but also return the summary."""
        files = self.files()
        outputs = Outputs.prepare(out, file_names(files), overwrite=overwrite)
        self.compute()
        outputs.remove("run.json")  # a run that is killed from here on leaves nothing that vouches for a mixture of files
        written = []
        with written_aside():  # while pictures are drawn
            for file in files:
                if file.when is None or file.when(self):
                    file.write(self, outputs.path(file.name))
                    written.append(outputs.path(file.name))
            summary = self.summary()
            recorded = dict(summary)
            if report:
                recorded["thumbnail"] = self.thumbnail()
                write_text(outputs.path(PAGE), self.render_report(summary))
                written.append(outputs.path(PAGE))
        for name in file_names(files):
            if outputs.path(name) not in written:  # an earlier run with other settings may have left it
                outputs.remove(name)
        return [*written, write_run(outputs, recorded, written)], summary


def file_names(files: Sequence[OutputFile]) -> list[str]:
    """Names of all files that a registration may write. Those that it always writes come first."""
    always = [f.name for f in files if f.when is None]
    return [*always, *PAGE_FILES, *(f.name for f in files if f.when is not None)]
