"""What a study compares, and the rows of its table: one for each case and method."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from eval import figures, tables
from rdmm.data.inputs import Inputs, ShapeInputs
from rdmm.data.pair_list import noted
from rdmm.data.studies.base import Cases
from rdmm.io.transforms import read_transform_as, write_transform
from rdmm.io.vectors import Space
from rdmm.registration.entry import Settings, compose_settings, run
from rdmm.registration.images import Registration
from rdmm.registration.record import warning_text
from rdmm.registration.shapes import ShapeRegistration
from rdmm.runtime.resources import peak_memory
from rdmm.spatial.transform import Identity, Transform, composed, framed
from rdmm.stages.base import Result
from rdmm.types import ConfigError, InputError, RdmmError, nearest

log = logging.getLogger(__name__)

TABLE = "table.json"


@dataclass(frozen=True)
class External:
    """The results of another tool, evaluated by the same code.

    Args:
        warps: files of the map fixed -> moving in the order of ``-t``; ``{case}`` stands for the case's name.
        form: itk, fsl, afni or learn2reg; None: decided by names and headers of the files.
        seconds: a text file that holds the tool's wall time, one number; None: unknown.
    """

    warps: Sequence[str]
    form: str | None = None
    seconds: str | None = None

    def __post_init__(self) -> None:
        if not self.warps or isinstance(self.warps, str):
            raise ConfigError("an external method needs warps: a list of files, e.g. [results/{case}1Warp.nii.gz]")

    def __call__(self, case: str, inputs: Inputs) -> Registration:
        """The other tool's registration of a case.

        Raises:
            InputError: a file is missing.
        """
        grid = inputs.pair.fixed.grid
        space = Space(*(inputs.stored or (grid, inputs.pair.moving.grid)))
        total_map: Transform = Identity()
        for name in self.warps:
            warp = read_transform_as(name.replace("{case}", case), self.form, space)
            total_map = composed(total_map, framed(warp, grid))
        pair = replace(inputs.pair, initial=Identity())
        result = Result(total_map, Identity(), {}, seconds={"total": self._seconds(case)})
        return Registration(replace(inputs, pair=pair), result, {}, has_inverse=False)

    def _seconds(self, case: str) -> float:
        """The tool's wall time on a case; NaN: unknown."""
        if self.seconds is None:
            return math.nan
        path, cure = Path(self.seconds.replace("{case}", case)), "leave out 'seconds' if the time is unknown"
        try:
            found = float(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a number of seconds ({error}); {cure}") from error
        if not (math.isfinite(found) and found >= 0):
            raise InputError(f"{path}: {found} is no number of seconds; {cure}")
        return found


@dataclass(frozen=True)
class Study:
    """The data sets and methods to compare.

    Args:
        data: data sets by name.
        methods: methods by name. A method is a list of settings of ``rdmm register`` on top of the experiment's (``weights=FILE`` for a
            trained model), or {warps: [...]}, the results of another tool (External). {settings: [...], vary: {KEY: [...]}} is a family:
            one method for each value.
        settings: further settings for all methods, by the data set's name.
        baseline: the method that the others are tested against; with families, a family.
        limit: number of cases of each data set; None: all.
        pictures: number of cases of each data set of which a figure is made.
        families: methods that differ in their settings alone, by the name that they have together. For each case, a family has the result
            of the method that does best on all other cases; these tables are in ``chosen/``, with the methods of no family as they are.
        choose_by: the measure that chooses, e.g. tre_mm.
        front: two measures, e.g. [error_lung_mm, error_cage_mm]: also compare the second where families have the same first (fronts.py).
        parts: folders of parts of this study that ran elsewhere, e.g. one for each case. Their tables are put together, nothing runs.
        style: how figures are printed: the arguments of ``figures.Print``.
        submission: ``nii.gz`` or ``npz``: also write each map in Learn2Reg's format, ``submission/<method>/disp_<case>``.

    Raises:
        ConfigError: a method or data set is unknown, or there is none.
    """

    data: Mapping[str, Cases]
    methods: Mapping[str, Any]
    settings: Mapping[str, list[str]]
    baseline: str | None = None
    limit: int | None = None
    pictures: int = 2
    families: Mapping[str, Sequence[str]] = field(default_factory=dict)
    choose_by: str | None = None
    front: Sequence[str] = ()
    parts: Sequence[str] = ()
    style: Mapping[str, Any] = field(default_factory=dict)
    submission: Literal["nii.gz", "npz"] | None = None

    def __post_init__(self) -> None:
        if not self.data or not self.methods:
            raise ConfigError("nothing to compare: choose an experiment with a study, e.g. experiment=synthetic_optimized")
        methods, families = _expanded(self.methods)
        object.__setattr__(self, "methods", methods)
        object.__setattr__(self, "families", {**families, **self.families})
        unknown = set(self.settings) - set(self.data)
        if unknown:
            raise ConfigError(f"study.settings: there is no data set {sorted(unknown)[0]!r}; there are {', '.join(self.data)}")
        self._check_families()
        _ = self.printed  # refuses an unknown style
        named = self.compared if self.families else self.methods
        if self.baseline is not None and self.baseline not in named:
            kind = "family" if self.families else "method"
            raise ConfigError(f"study.baseline: there is no {kind} {self.baseline!r}{nearest(self.baseline, named)}")
        for folder in self.parts:
            if not (Path(folder) / TABLE).exists():
                raise ConfigError(f"study.parts: {folder}/{TABLE} does not exist; give the folders of the parts' results")
        if self.front:
            self._check_front()
        if self.submission not in (None, "nii.gz", "npz"):
            raise ConfigError(f"study.submission must be nii.gz or npz; got {self.submission!r}")
        for name, method in self.methods.items():
            if isinstance(method, Mapping):
                _external(name, method)

    @property
    def printed(self) -> figures.Print:
        """How figures are printed."""
        return figures.Print.of(self.style)

    def _check_front(self) -> None:
        if not self.families or len(self.front) != 2:
            raise ConfigError(
                f"study.front must be two measures, of a study with families, e.g. [error_lung_mm, error_cage_mm]; got {list(self.front)}"
            )
        for measure in self.front:
            if not (measure in tables.TITLES or tables.is_tested(measure)):
                raise ConfigError(
                    f"study.front: there is no measure {measure!r}{nearest(measure, tables.TITLES)}; there are {', '.join(tables.TITLES)}"
                )
        if not tables.lower_is_better(self.front[0]):
            raise ConfigError(
                f"study.front: the first measure must be one of which less is better, such as sd_log_jacobian_subject; got {self.front[0]}"
            )

    @property
    def compared(self) -> dict[str, Sequence[str]]:
        """The families, and each method that is in none as a family of its own, in the order of the methods."""
        of = {method: family for family, methods in self.families.items() for method in methods}
        names = dict.fromkeys(of.get(method, method) for method in self.methods)
        return {name: self.families.get(name, [name]) for name in names}

    def _check_families(self) -> None:
        for family, methods in self.families.items():
            if family in self.methods:
                raise ConfigError(f"study.families: {family!r} is a method; give the family another name")
            for method in methods:
                if method not in self.methods:
                    raise ConfigError(f"study.families.{family}: there is no method {method!r}{nearest(method, self.methods)}")
        if self.families and not tables.is_tested(str(self.choose_by)):
            hint = nearest(str(self.choose_by), tables.TESTED_METRICS)
            raise ConfigError(f"study.choose_by must be one of {', '.join(tables.TESTED_METRICS)}; got {self.choose_by}{hint}")


def _expanded(methods: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The methods, with one for each value of those that vary; and the families of these."""
    out: dict[str, Any] = {}
    families: dict[str, list[str]] = {}
    for name, method in methods.items():
        if not isinstance(method, Mapping) or "vary" not in method:
            out[name] = method
            continue
        vary, settings = method["vary"], method.get("settings", [])
        unknown = sorted(set(method) - {"settings", "vary"})
        if unknown:
            raise ConfigError(f"study.methods.{name}: no key {unknown[0]!r}{nearest(unknown[0], ('settings', 'vary'))}")
        if not isinstance(vary, Mapping) or len(vary) != 1 or not isinstance(values := next(iter(vary.values())), list) or not values:
            raise ConfigError(f"study.methods.{name}.vary must be one key with a list, e.g. {{similarity_weight: [0.1, 1]}}; got {vary}")
        key = next(iter(vary))
        families[name] = [f"{name}_{value}" for value in values]
        out |= {f"{name}_{value}": [*settings, f"{key}={value}"] for value in values}
    return out, families


def read_parts(folders: Sequence[str]) -> list[tables.Row]:
    """The rows of the parts of a study, in their order. What was not measured is null in their files, and NaN here.

    Raises:
        ConfigError: a case was run by a method in two of them.
    """
    rows: dict[tuple[str, str, str], tables.Row] = {}
    for folder in folders:
        for row in json.loads((Path(folder) / TABLE).read_text())["rows"]:
            key = (row["data"], row["case"], row["method"])
            if key in rows:
                raise ConfigError(f"study.parts: {folder} has case {key[1]} of {key[0]} by {key[2]}, which another part has, too")
            rows[key] = {k: math.nan if value is None else value for k, value in row.items()}
    return list(rows.values())


def _external(name: str, method: Mapping[str, Any]) -> External:
    known = [f.name for f in fields(External)]
    unknown = sorted(set(method) - set(known))
    if unknown:
        raise ConfigError(f"study.methods.{name}: no key {unknown[0]!r}{nearest(unknown[0], known)}; known are {', '.join(known)}")
    return External(**{"warps": (), **method})


def table_rows(study: Study, base: Sequence[str], device: str, seed: int, out: Path) -> Iterator[dict[str, Any]]:
    """One row of the table for each case and method. A failure is a row that holds the error.

    Args:
        base: typed KEY=VALUE for every method. Keys of an optimizer are left out for methods with optimizer=none.
        out: folder of the figures and submissions.
    """
    for name, data in study.data.items():
        methods = _build_methods(study, name, base, getattr(data, "settings", "register"))
        notes: Mapping[str, Mapping[str, str]] = getattr(data, "notes", dict)()
        for number, (case, read) in enumerate(list(data.cases().items())[: study.limit]):
            shown: dict[str, Registration | ShapeRegistration] = {}
            try:
                inputs = read()
            except RdmmError as error:
                failed = {"status": _error_text(error)}
                yield from ({"data": name, "case": case, "method": m, **failed, **_noted(notes, case, failed)} for m in methods)
                continue
            for method, how in methods.items():
                row, registration = _evaluate_case(case, inputs, how, device, seed)
                log.info("%s %s: %s", case, method, tables.format_row(row))
                if registration is not None:
                    row[tables.THUMBNAIL] = registration.thumbnail()
                    if number < study.pictures:
                        shown[method] = registration
                if study.submission and isinstance(registration, Registration):
                    write_submission(registration, out / "submission" / method / f"disp_{case}.{study.submission}")
                yield {"data": name, "case": case, "method": method, **row, **_noted(notes, case, row)}
            if shown:
                figures.case(shown, out / case, study.printed)
                if isinstance(inputs, Inputs) and inputs.truth is not None:
                    figures.errors(shown, out / f"{case}_errors", study.printed)


def _noted(notes: Mapping[str, Mapping[str, str]], case: str, row: Mapping[str, Any]) -> dict[str, str]:
    """The notes on a case as columns beside those of its row."""
    return noted(notes.get(case, {}), {"data", "case", "method", *row, *tables.TITLES})


def _build_methods(study: Study, name: str, base: Sequence[str], settings: str) -> dict[str, Settings | External]:
    """The methods for the data set ``name``: settings, or another tool's results."""
    methods: dict[str, Settings | External] = {}
    for method, own in study.methods.items():
        if isinstance(own, Mapping):
            methods[method] = _external(method, own)
            continue
        typed = [o for o in base if not ("optimizer=none" in own and o.lstrip("+~").startswith("optimizer."))]
        measured = ["output.refined=true"] if settings == "register" else []
        methods[method] = compose_settings([*measured, *typed, *study.settings.get(name, []), *own], settings)
    return methods


def _evaluate_case(
    case: str, inputs: Inputs | ShapeInputs, how: Settings | External, device: str, seed: int
) -> tuple[dict[str, Any], Registration | ShapeRegistration | None]:
    """A case by one method: status and metrics, and the registration; None after an error."""
    try:
        registration: Registration | ShapeRegistration
        if isinstance(how, External):
            if isinstance(inputs, ShapeInputs):
                raise ConfigError("results of other tools are evaluated on images only; this data set holds shapes")
            registration = how(case, inputs)
        else:
            registration = run(inputs, how, device=device, seed=seed)
        metrics: dict[str, Any] = {k: v for k, v in registration.metrics.items() if k == "subject" or isinstance(v, int | float)}
        warnings = warning_text({"warnings": registration.provenance.warnings or inputs.warnings})
        metrics |= {"warnings": warnings} if warnings else {}
        if isinstance(how, External):
            spent = registration.result.seconds["total"]
            return {"status": "done", **metrics, **({} if math.isnan(spent) else {"seconds": spent})}, registration
        if isinstance(registration, Registration) and registration.dynamics is not None:
            metrics["similarity"] = registration.energy["similarity"] / how.config["similarity_weight"]
        cost = {"seconds": registration.result.seconds["total"], "peak_memory_mb": peak_memory() / 2**20}
        return {"status": registration.status, "verdict": str(registration.verdict), **metrics, **cost}, registration
    except RdmmError as error:
        return {"status": _error_text(error)}, None


def _error_text(error: RdmmError) -> str:
    return f"{type(error).__name__}: {error}"


def write_submission(registration: Registration, path: Path) -> None:
    """Write the total map in Learn2Reg's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pair = registration.pair
    grids = registration.inputs.stored or (pair.fixed.grid, pair.moving.grid)
    write_transform(path, registration.transform, "learn2reg", Space(*grids))
