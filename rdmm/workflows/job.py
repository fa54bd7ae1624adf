"""One registration from files to files: what ``rdmm register`` does, and ``rdmm batch`` for each of its pairs."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rdmm.config.compose import quoted
from rdmm.config.renamed import current
from rdmm.data.given import OPTIONAL_INPUTS
from rdmm.data.inputs import Inputs, ShapeInputs, check_memory, read_inputs, read_shapes
from rdmm.io import Outputs, is_mesh, sha256
from rdmm.kernels.available import set_threads
from rdmm.registration.base import FinishedRegistration, file_names
from rdmm.registration.entry import Settings, compose_settings, run
from rdmm.registration.images import MIN_WEIGHT_FILES
from rdmm.registration.outputs import SHAPE_FILES, image_files
from rdmm.registration.record import nan_to_null
from rdmm.runtime.resources import select_device
from rdmm.types import ConfigError, DivergenceError


@dataclass(frozen=True)
class Job:
    """Files, settings, and where the results go.

    Args:
        out: prefix or folder of the results.
        overrides: KEY=VALUE settings.
        inputs: further inputs by name (``rdmm.data.given``); those that are None or False are left out.
        init: start of the affine search.
        weights: a trained model.
        max_folding: more per cent of folded cells than this are a failure.
    """

    fixed: str
    moving: str
    out: str
    overrides: Sequence[str] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    weights: str | None = None
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    max_folding: float | None = None

    @property
    def for_shapes(self) -> bool:
        return is_mesh(self.fixed) or is_mesh(self.moving)

    @property
    def given_inputs(self) -> dict[str, Any]:
        """The further inputs that were given."""
        return {k: v for k, v in self.inputs.items() if v is not None and v is not False}

    @property
    def command(self) -> str:
        """What would be typed for this registration, but for what its results do not depend on: their place, and the threads."""
        options = {**self.given_inputs, "init": self.init, "weights": self.weights, "max_folding": self.max_folding}
        options |= {"device": self.device if self.device != "cpu" else None, "seed": self.seed or None}
        words = ["rdmm", "register", self.fixed, self.moving]
        for name, value in options.items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        return shlex.join([*words, *self.overrides])

    def settings(self) -> Settings:
        """The settings, composed and built once: a wrong one is found before any data is read."""
        more = [] if self.init is None else [f"affine.init={self.init}"]
        more += [] if self.weights is None else [f"weights={quoted(self.weights)}"]
        settings = compose_settings([*self.overrides, *more], "shapes" if self.for_shapes else "register")
        select_device(self.device)
        return settings

    def read(self) -> Inputs | ShapeInputs:
        """The checked inputs."""
        if not self.for_shapes:
            return read_inputs(self.fixed, self.moving, **self.given_inputs, require_overlap=self.init != "com")
        for_shapes = {g.name for g in OPTIONAL_INPUTS if g.for_shapes}
        wrong = [k for k in self.given_inputs if k not in for_shapes]
        wrong += [k for k in ("weights", "max_folding") if getattr(self, k) is not None]
        if wrong:
            raise ConfigError(f"--{wrong[0].replace('_', '-')} is for images; {self.fixed} and {self.moving} are registered as shapes")
        return read_shapes(self.fixed, self.moving, self.given_inputs.get("landmarks"))

    def memory(self) -> int:
        """Estimated peak in bytes; ResourceError if that is more than is free. 0 for shapes."""
        return 0 if self.for_shapes else check_memory([self.fixed, self.moving])

    def output_names(self, settings: Settings) -> list[str]:
        """Everything that this registration may write."""
        return file_names(SHAPE_FILES if self.for_shapes else image_files(settings.output, MIN_WEIGHT_FILES))

    @contextlib.contextmanager
    def reserve_outputs(self, settings: Settings, *, overwrite: bool) -> Iterator[None]:
        """Check that the results can be written, before anything is computed, and keep other runs away."""
        with Outputs.prepare(self.out, [], overwrite=True).locked():
            Outputs.prepare(self.out, self.output_names(settings), overwrite=overwrite)
            yield

    def run(self, inputs: Inputs | ShapeInputs, settings: Settings) -> tuple[FinishedRegistration, list[Path], dict[str, Any]]:
        """Register and write. An interrupted search leaves its best result.

        Returns:
            the registration, the files (run.json last), and what run.json holds.
        """
        set_threads(self.threads)
        done: FinishedRegistration = run(inputs, settings, device=self.device, seed=self.seed, command=self.command)
        return done, *done.write(self.out, overwrite=True)

    def check_folding(self, measures: Mapping[str, Any]) -> None:
        """DivergenceError where more folds than ``max_folding`` allows."""
        folded = measures.get("folded_cells_percent", 0.0)
        if self.max_folding is not None and folded > self.max_folding:
            raise DivergenceError(f"{folded:.3g} % of the cells fold, more than --max-folding {self.max_folding:g}; the result is written")

    def find_finished_run(self, settings: Settings) -> dict[str, Any] | None:
        """run.json of an earlier run of this very job: the same settings, inputs and results by their checksums, wherever the inputs
        lie now; else None."""
        outputs = Outputs(str(Path(self.out)) + "/")
        try:
            run = json.loads(outputs.path("run.json").read_text())
            recorded = run["inputs"]
            files = {"fixed": self.fixed, "moving": self.moving, **self.given_inputs, "weights": settings.config.get("weights")}
            then = replace(
                self, **{k: recorded[k]["path"] for k in ("fixed", "moving")}, inputs=_restore_paths(self.given_inputs, recorded)
            )
            same = run["status"] == "done" and current(run["config"]) == json.loads(json.dumps(nan_to_null(settings.config)))
            same = same and (run["command"], run["seed"]) == (then.command, self.seed)
            same = same and all(sha256(files[k]) == v["sha256"] for k, v in recorded.items())
            same = same and all(sha256(outputs.path(k)) == v for k, v in run["outputs"].items())
            self.check_folding(run["metrics"])
            return run if same else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DivergenceError):
            return None


def _restore_paths(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Further inputs, the files among them by the paths that they had at the time of a run."""
    return {k: recorded[k]["path"] if k in recorded else v for k, v in given.items()}
