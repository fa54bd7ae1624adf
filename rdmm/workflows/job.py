"""One registration from files to files, for ``rdmm register`` and for each pair of ``rdmm batch``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from rdmm.config.compose import changed_settings, quoted
from rdmm.config.plugins import allowing
from rdmm.data.given import OPTIONAL_INPUTS, PAIR_FILES, Also, file_of, files_of, values_of
from rdmm.data.inputs import Inputs, ShapeInputs, check_memory, estimate_memory, read_inputs, read_shapes
from rdmm.io import Outputs, is_mesh, sha256
from rdmm.io.formats.choice import require_source
from rdmm.io.maps import expand_maps
from rdmm.kernels.available import set_threads
from rdmm.optim.initializers import Zero
from rdmm.registration.base import PAGE, FinishedRegistration, file_names
from rdmm.registration.entry import Settings, build_settings, compose_settings, prepare, run
from rdmm.registration.images import MIN_WEIGHT_FILES
from rdmm.registration.outputs import SHAPE_FILES, image_files
from rdmm.registration.record import nan_to_null, read_summary
from rdmm.registration.typed_options import option_overrides
from rdmm.runtime.resources import select_device
from rdmm.stages.deform import deforms
from rdmm.types import ConfigError, DivergenceError, InputError, RdmmError, option

log = logging.getLogger(__name__)

NUMBERED = re.compile(r"_\d+\.")
"""What files of the second and further images have in their names."""


@dataclass(frozen=True)
class Job:
    """The input files, settings and output location of one registration.

    Args:
        fixed, moving: paths of two images, or of two shapes.
        out: prefix of the result files, or a folder (ends in /).
        overrides: KEY=VALUE settings.
        inputs: optional inputs by name (``rdmm.data.given``); None or False means not given.
        init: start of the affine search: auto, header, com or axes.
        transform: kind of transform: translation, rigid, similarity, affine, svf, lddmm or rdmm; None: set by the settings.
        guide_labels: whether the labels take part in the registration.
        weights: path of a trained model.
        device: cpu or cuda.
        threads: CPU threads; None: torch's default.
        features: name of the point data of two shapes that similarity.cost=features compares; None: none.
        max_folding: largest percentage of folded cells that is accepted; None: any.
        report: whether report.html and its pictures are made.
        allow: packages outside rdmm whose classes the settings, and the model, may name.
        config: the composed settings, where they are known: all pairs of a batch share them.
    """

    fixed: str
    moving: str
    out: str
    overrides: Sequence[str] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    transform: str | None = None
    guide_labels: bool = False
    weights: str | None = None
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    features: str | None = None
    max_folding: float | None = None
    report: bool = True
    allow: Sequence[str] = ()
    config: Mapping[str, Any] | None = None

    @property
    def for_shapes(self) -> bool:
        """Whether the inputs are shapes, by the suffixes of the files."""
        return is_mesh(self.fixed) or is_mesh(self.moving)

    @property
    def given_inputs(self) -> dict[str, Any]:
        """The optional inputs that were given; a run that is given as an initial transform is replaced by its files."""
        given = {k: v for k, v in self.inputs.items() if values_of(v)}
        return {k: expand_maps(values_of(v)) if k == "initial" else v for k, v in given.items()}

    @property
    def command(self) -> str:
        """The equivalent command line, without -o, --threads and --no-report, which do not change the results."""
        options = {
            **self.given_inputs,
            "init": self.init,
            "transform": self.transform,
            "guide_labels": self.guide_labels,
            "weights": self.weights,
            "features": self.features,
            "max_folding": self.max_folding,
            "allow": self.allow,
        }
        options |= {"device": self.device if self.device != "cpu" else None, "seed": self.seed or None}
        words = ["rdmm", "register", self.fixed, self.moving]
        for name, given in options.items():
            for value in values_of(given):
                words.append(f"--{name.replace('_', '-')}")
                words += [] if value is True else value.typed() if isinstance(value, Also) else [str(value)]
        return shlex.join([*words, *self.overrides])

    def settings(self) -> Settings:
        """Compose and build the settings. Call this before any data is read.

        Raises:
            ConfigError: an unknown key, a value that cannot be used, a package to allow or a device that does not exist.
        """
        with allowing(self.allow):
            return self._compose() if self.config is None else build_settings(self.config)

    def _compose(self) -> Settings:
        more = [] if self.weights is None else [f"weights={quoted(self.weights)}"]
        options = {"init": self.init, "transform": self.transform, "guide_labels": self.guide_labels}
        more += option_overrides([*self.overrides, *more], **options, for_shapes=self.for_shapes)  # type: ignore[arg-type]
        settings = compose_settings([*self.overrides, *more], "shapes" if self.for_shapes else "register")
        select_device(self.device)
        return settings

    def read(self) -> Inputs | ShapeInputs:
        """Read and check the inputs.

        Raises:
            InputError: a file cannot be used, or one is an image and the other a shape.
            ConfigError: an option that only images have was given for shapes.
        """
        if is_mesh(self.fixed) != is_mesh(self.moving):
            kinds = ("a shape", "an image") if is_mesh(self.fixed) else ("an image", "a shape")
            raise InputError(f"{self.fixed} is {kinds[0]} and {self.moving} is {kinds[1]}; give two images or two shapes")
        if not self.for_shapes and self.features is not None:
            raise ConfigError(f"{option('features', self.features)} names point data of shapes, but {self.fixed} is an image; leave it out")
        if not self.for_shapes:
            return read_inputs(self.fixed, self.moving, **self.given_inputs, require_overlap=self.init != "com")
        for_shapes = {g.name for g in OPTIONAL_INPUTS if g.for_shapes}
        wrong = [k for k in self.given_inputs if k not in for_shapes]
        wrong += [k for k in ("weights", "max_folding") if getattr(self, k) is not None]
        if wrong:
            raise ConfigError(
                f"--{wrong[0].replace('_', '-')} works only for images, but {self.fixed} and {self.moving} are shapes; leave it out"
            )
        return read_shapes(self.fixed, self.moving, self.given_inputs.get("landmarks"), self.features)

    def memory(self) -> int:
        """Estimated peak memory in bytes; 0 for shapes. Raises ResourceError if it exceeds the free memory."""
        return 0 if self.for_shapes else check_memory([self.fixed, self.moving])

    def memory_elsewhere(self) -> int:
        """Estimated peak memory in bytes on another machine, whatever is free on this one."""
        return 0 if self.for_shapes else estimate_memory([self.fixed, self.moving])[0]

    def output_names(self, settings: Settings) -> list[str]:
        """Names of all files that this registration may write."""
        return file_names(SHAPE_FILES if self.for_shapes else image_files(settings.output, MIN_WEIGHT_FILES))

    def require_files(self) -> None:
        """Check that the input files exist, without reading them. Raises InputError."""
        named = files_of({k: v for k, v in self.given_inputs.items() if k in (*PAIR_FILES, "also")})
        for path in (self.fixed, self.moving, *named.values()):
            require_source(path)

    @contextlib.contextmanager
    def reserve_outputs(self, settings: Settings, *, overwrite: bool) -> Iterator[None]:
        """Check that the results can be written, and lock them against other runs until the block ends.

        Raises:
            OutputError: a file exists and ``overwrite`` is false, the place cannot be written, or another run holds the lock.
        """
        names = self.output_names(settings)
        with Outputs.prepare(self.out, names, overwrite=True).locked():
            Outputs.prepare(self.out, names, overwrite=overwrite)
            yield

    def check(self, *, overwrite: bool) -> Settings:
        """All that can be refused before anything is computed or written (``--dry-run``). Returns the settings.

        Raises:
            RdmmError: settings, inputs or output location cannot be used; its subclasses in rdmm.types say which.
        """
        settings = self.settings()
        prepare(self._with_unused_named(self.read(), settings), settings, self.device)
        self.memory()
        Outputs.check(self.out, self.output_names(settings), overwrite=overwrite)
        return settings

    def checked_facts(self, settings: Settings, *, whole: bool) -> dict[str, Any]:
        """What a dry run prints: the files, the memory, and the settings that differ from the defaults.

        Args:
            whole: all settings instead.
        """
        options = {"transform": self.transform, "init": self.init, "weights": self.weights}
        facts: dict[str, Any] = {
            "fixed": self.fixed,
            "moving": self.moving,
            **self.given_inputs,
            **{k: v for k, v in options.items() if v is not None},
        }
        facts |= {
            "out": self.out,
            "may_write": ", ".join(n for n in self.output_names(settings) if self._may_write(n)),
            "memory_gib": round(self.memory() / 2**30, 2),
        }
        if whole:
            return {**facts, "config": settings.config}
        changed = changed_settings(settings.config, "shapes" if self.for_shapes else "register")
        return {**facts, "settings": changed or "the defaults"}

    def _may_write(self, name: str) -> bool:
        """Whether a dry run names this file; those of further images go without saying."""
        return not NUMBERED.search(name) and (self.report or name != PAGE)

    def run(self, inputs: Inputs | ShapeInputs, settings: Settings) -> tuple[FinishedRegistration, list[Path], dict[str, Any]]:
        """Register and write the results. If the search is interrupted, its best result is written.

        Returns:
            the registration, the paths of the files (run.json last), and the content of run.json.
        """
        set_threads(self.threads)
        inputs = self._with_unused_named(inputs, settings)
        done: FinishedRegistration = run(inputs, settings, device=self.device, seed=self.seed, command=self.command)
        return done, *done.write(self.out, overwrite=True, report=self.report)

    def _with_unused_named(self, inputs: Inputs | ShapeInputs, settings: Settings) -> Inputs | ShapeInputs:
        """The inputs, with a warning for each that was given and that nothing will use."""
        unused = []
        if "regions" in self.given_inputs and all(isinstance(d.initializer, Zero) for d in deforms(settings.stages)):
            unused.append("--regions has no effect: only initializer=regions uses it")
        if "fixed_labels" in self.given_inputs and "moving_labels" not in self.given_inputs:
            unused.append("--fixed-labels alone only say where the subject is: Dice needs --moving-labels, too")
        for text in unused:
            log.warning("%s", text)
        if "moving_labels" in self.given_inputs and "fixed_labels" not in self.given_inputs:
            log.info("%s alone are warped and written; Dice needs %s, too", option("moving_labels", ""), option("fixed_labels", ""))
        return replace(inputs, warnings=[*inputs.warnings, *unused])

    def check_folding(self, metrics: Mapping[str, Any]) -> None:
        """Raise DivergenceError if more cells fold than ``max_folding`` allows."""
        folded = metrics.get("folded_cells_percent", 0.0)
        if self.max_folding is not None and folded > self.max_folding:
            raise DivergenceError(
                f"{folded:.3g} % of the cells fold, more than --max-folding {self.max_folding:g} allows; the result was written"
            )

    def find_finished_run(self, settings: Settings, *, verify: bool = False) -> dict[str, Any] | None:
        """The run.json of an earlier run of the same job, or None if there is none.

        The settings must be equal, and inputs and results must have the recorded checksums. The inputs may have moved to other paths.

        Args:
            verify: also read the results of which the file system says that they are unchanged.
        """
        outputs = Outputs(str(Path(self.out)) + "/")
        try:
            run = read_summary(outputs.path("run.json"))
            if not (self._has_same_settings(run, settings) and self._has_same_files(run, settings, outputs, verify)):
                return None
            self.check_folding(run["metrics"])
            return run
        except (OSError, KeyError, TypeError, RdmmError):
            return None

    def _has_same_settings(self, run: Mapping[str, Any], settings: Settings) -> bool:
        """Whether ``run`` is finished and has this job's configuration, command (with the recorded paths) and seed."""
        files = run["inputs"]
        moved = {path: files[k]["path"] for k, path in files_of(self.given_inputs).items() if k in files}
        inputs = {k: [_relocated(x, moved) for x in values_of(v)] for k, v in self.given_inputs.items()}
        then = replace(self, fixed=files["fixed"]["path"], moving=files["moving"]["path"], inputs=inputs)
        config = json.loads(json.dumps(nan_to_null(settings.config)))
        recorded = (
            config | run["config"]
        )  # settings that a record of an earlier version lacks had their defaults, as the commands are equal
        return (run["status"], run["command"], run["seed"]) == ("done", then.command, self.seed) and recorded == config

    def _has_same_files(self, run: Mapping[str, Any], settings: Settings, outputs: Outputs, verify: bool) -> bool:
        """Whether this job's inputs, and the results on disk, have the checksums of ``run``."""
        own = {"fixed": self.fixed, "moving": self.moving, **self.given_inputs, "weights": settings.config.get("weights")}
        files = files_of(own)
        written = 0 if verify else outputs.path("run.json").stat().st_mtime_ns
        return all(_input_sha256(files[k], _times(files[k])) == v["sha256"] for k, v in run["inputs"].items()) and all(
            max(_times(outputs.path(k))) < written or sha256(outputs.path(k)) == v for k, v in run["outputs"].items()
        )


def _times(path: str | os.PathLike[str]) -> tuple[int, int]:
    """When the file was last written, and when it was last changed in any way (renamed, for example), in nanoseconds.

    run.json is written after all results: a result that is older than it, by both times, is the one that was written.
    """
    state = os.stat(path)
    return state.st_mtime_ns, state.st_ctime_ns


@cache
def _input_sha256(path: str, times: tuple[int, int]) -> str:
    """The checksum of an input; many pairs of a batch share one."""
    return sha256(path)


def _relocated(value: Any, moved: Mapping[str, str]) -> Any:
    """An input whose file, now at a key of ``moved``, was at the value when the run was recorded."""
    if isinstance(value, Also):
        return replace(value, fixed=_relocated(value.fixed, moved), moving=_relocated(value.moving, moved))
    if not isinstance(value, str | os.PathLike):
        return value
    path = file_of(value)
    return os.fspath(value).replace(path, moved.get(path, path))
