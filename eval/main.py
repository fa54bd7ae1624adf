"""``python eval.py experiment=NAME [KEY=VALUE ...]``: every case of a data set by every method of an experiment.

An experiment (``conf/experiment``) is a set of settings for ``rdmm register``, and a ``study``: data sets, and methods, each
the settings by which it differs, or the warps of another tool. The tables (``table.csv``, ``.json``, ``.md``, ``.tex``), the figures and
``index.html`` go to Hydra's run folder. Exit code 4: some rows are failures.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import hydra
from hydra.core.hydra_config import HydraConfig

from eval import figures, tables
from rdmm.config.build import build
from rdmm.config.compose import check, compose, share
from rdmm.data.inputs import Inputs, ShapeInputs
from rdmm.data.studies.base import Cases
from rdmm.io import write_atomically
from rdmm.io.transforms import read_transform_as, write_transform
from rdmm.io.vectors import Space
from rdmm.kernels.available import set_threads
from rdmm.registration import shapes
from rdmm.registration.images import Registration, run
from rdmm.registration.record import message
from rdmm.registration.shapes import ShapeRegistration
from rdmm.report.html import render_study
from rdmm.runtime.resources import peak_memory
from rdmm.spatial.transform import Identity, Transform, composed, framed
from rdmm.stages.base import Result, Skip
from rdmm.types import ConfigError, RdmmError, nearest

log = logging.getLogger(__name__)
OWN = ("study.", "device=", "threads=", "seed=", "hydra.", "hydra/")


@dataclass(frozen=True)
class External:
    """Another tool's results, judged by the same code.

    Args:
        warps: files of the map fixed -> moving, ``{case}`` standing for the case's name, in the order of ``-t``.
        form: itk, fsl, afni or learn2reg; None: what their names and headers tell.
    """

    warps: Sequence[str]
    form: str | None = None

    def __post_init__(self) -> None:
        if not self.warps or isinstance(self.warps, str):
            raise ConfigError("an external method needs warps: a list of files, e.g. [results/{case}1Warp.nii.gz]")

    def __call__(self, case: str, inputs: Inputs) -> Registration:
        """What it made of a case. Raises InputError where a file is missing."""
        grid, like = inputs.pair.fixed.grid, inputs.stored or (inputs.pair.fixed.grid, inputs.pair.moving.grid)
        whole: Transform = Identity()
        for name in self.warps:
            read = read_transform_as(name.replace("{case}", case), self.form, Space(*like))
            whole = composed(whole, framed(read, grid))
        pair = replace(inputs.pair, initial=Identity())
        result = Result(whole, Identity(), {}, seconds={"total": math.nan})
        return Registration(replace(inputs, pair=pair), result, {}, {"stages": Skip()}, has_inverse=False)


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        data: data sets by name.
        methods: by name, the settings of ``rdmm register`` on top of the experiment's (``weights=FILE`` for a trained model), or
            {warps: [...]}, the results of another tool (External).
        settings: further settings by the data set's name, for all methods.
        baseline: the method that the others are tested against.
        limit: cases of each data set, from the first; None: all.
        pictures: cases of each data set that a figure is made of.
        submission: ``nii.gz`` or ``npz``: also write each map as Learn2Reg takes it, ``submission/<method>/disp_<case>``.
    """

    data: Mapping[str, Cases]
    methods: Mapping[str, Any]
    settings: Mapping[str, list[str]]
    baseline: str | None = None
    limit: int | None = None
    pictures: int = 2
    submission: Literal["nii.gz", "npz"] | None = None

    def __post_init__(self) -> None:
        if not self.data or not self.methods:
            raise ConfigError("nothing to compare: choose an experiment with a study, e.g. experiment=synthetic_optimized")
        unknown = set(self.settings) - set(self.data)
        if unknown:
            raise ConfigError(f"study.settings: there is no data set {sorted(unknown)[0]!r}; there are {', '.join(self.data)}")
        if self.baseline is not None and self.baseline not in self.methods:
            raise ConfigError(f"study.baseline: there is no method {self.baseline!r}{nearest(self.baseline, self.methods)}")
        if self.submission not in (None, "nii.gz", "npz"):
            raise ConfigError(f"study.submission is nii.gz or npz, not {self.submission!r}")
        for name, method in self.methods.items():
            if isinstance(method, Mapping):
                _external(name, method)


def _external(name: str, method: Mapping[str, Any]) -> External:
    unknown = sorted(set(method) - {"warps", "form"})
    if unknown:
        raise ConfigError(f"study.methods.{name}: no key {unknown[0]!r}{nearest(unknown[0], ('warps', 'form'))}; warps and form are known")
    return External(method.get("warps", ()), method.get("form"))


def rows(study: Study, base: list[str], device: str, seed: int, out: Path) -> Iterator[dict[str, Any]]:
    """One row of the table for each case and method; a failure is a row that says why. What was typed for all methods reaches each of
    them, but for keys of an optimizer that a method does without."""
    for name, data in study.data.items():
        settings = getattr(data, "settings", "register")
        methods: dict[str, dict[str, Any] | External] = {}
        for method, more in study.methods.items():
            if isinstance(more, Mapping):
                methods[method] = _external(method, more)
                continue
            typed = [o for o in base if not ("optimizer=none" in more and o.lstrip("+~").startswith("optimizer."))]
            config = compose([*typed, *study.settings.get(name, []), *more], settings)
            build(config["stages"], "stages")
            methods[method] = config
        for number, (case, read) in enumerate(list(data.cases().items())[: study.limit]):
            done: dict[str, Registration | ShapeRegistration] = {}
            try:
                inputs = read()
            except RdmmError as error:
                yield from ({"data": name, "case": case, "method": m, "status": _said(error)} for m in methods)
                continue
            for method, how in methods.items():
                row, registration = _judged(case, inputs, how, device, seed)
                if registration is not None and number < study.pictures:
                    done[method] = registration
                if study.submission and isinstance(registration, Registration):
                    submit(registration, out / "submission" / method / f"disp_{case}.{study.submission}")
                log.info("%s %s: %s", case, method, tables.brief(row))
                if registration is not None:
                    row[tables.THUMBNAIL] = registration.thumbnail()
                yield {"data": name, "case": case, "method": method, **row}
            if done:
                figures.case(done, out / f"{case}.png")


def _said(error: RdmmError) -> str:
    return f"{type(error).__name__}: {error}"


def submit(registration: Registration, path: Path) -> None:
    """The whole map as a submission to Learn2Reg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pair = registration.pair
    grids = registration.inputs.stored or (pair.fixed.grid, pair.moving.grid)
    write_transform(path, registration.transform, "learn2reg", Space(*grids))


def _judged(
    case: str, inputs: Inputs | ShapeInputs, how: dict[str, Any] | External, device: str, seed: int
) -> tuple[dict[str, Any], Registration | ShapeRegistration | None]:
    try:
        registration: Registration | ShapeRegistration
        if isinstance(how, External):
            if isinstance(inputs, ShapeInputs):
                raise ConfigError("results of other tools are judged on images")
            registration = how(case, inputs)
        elif isinstance(inputs, ShapeInputs):
            registration = shapes.run(inputs, how, device=device, seed=seed)
        else:
            registration = run(inputs, how, device=device, seed=seed)
        measured: dict[str, Any] = {k: v for k, v in registration.metrics.items() if isinstance(v, int | float)}
        warnings = message({"warnings": registration.settings.get("warnings", inputs.warnings)})
        measured |= {"warnings": warnings} if warnings else {}
        if isinstance(how, External):
            return {"status": "done", **measured}, registration
        if isinstance(registration, Registration) and registration.dynamics is not None:
            measured["similarity"] = registration.energy["similarity"] / how["similarity_weight"]
        cost = {"seconds": registration.result.seconds["total"], "peak_memory_mb": peak_memory() / 2**20}
        return {"status": registration.status, **measured, **cost}, registration
    except RdmmError as error:
        return {"status": _said(error)}, None


def write_index(table: list[dict[str, Any]], out: Path) -> None:
    """``index.html``: every case and method, worst first, each with a small picture, and the case's large one where there is one."""

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        link = {"link": quote(f"{row['case']}.png")} if (out / f"{row['case']}.png").exists() else {}
        status = {"status": row["status"].split(":")[0], "message": row["status"].partition(": ")[2]}
        return {"case": row["case"], **{k: v for k, v in row.items() if k not in ("case", "status")}, **status, **link}

    write_atomically(out / "index.html", render_study(f"Study {out.resolve().name}", [shown(r) for r in table]).encode())


def evaluate(config: Any, typed: list[str], out: Path) -> Path:
    """Run the study of a composed configuration; the path of the table."""
    study = build({"_target_": "eval.main.Study", **config["study"]}, "study")
    set_threads(config["threads"])
    base = [o for o in typed if not o.lstrip("+~").startswith(OWN)]
    table = []
    for row in rows(study, base, config["device"], config["seed"], out):
        table.append(row)
        tables.write(table, out, study.baseline)  # after each row: what is done is never lost
    figures.boxes(table, out)
    write_index(table, out)
    return out / "table.md"


@hydra.main(version_base=None, config_path=str(share() / "conf"), config_name="eval")
def application(config: Any) -> None:
    from omegaconf import OmegaConf

    logging.getLogger("rdmm").setLevel(logging.WARNING)
    task = HydraConfig.get()
    try:
        path = evaluate(OmegaConf.to_container(config, resolve=True), list(task.overrides.task), Path(task.runtime.output_dir))
    except RdmmError as error:
        log.error("%s: %s", type(error).__name__, error)
        sys.exit(error.exit_code)
    log.info("\n%s\n%s", path.read_text(), path)
    states = [row["status"] for row in json.loads((path.parent / "table.json").read_text())["rows"]]
    if "done" not in states:
        sys.exit(3)
    if set(states) != {"done"}:
        sys.exit(4)


def main() -> None:
    """Settings are checked as ``rdmm register`` checks them, then Hydra takes over."""
    try:
        check([a for a in sys.argv[1:] if not a.startswith(("-", "hydra"))], "eval")
    except RdmmError as error:
        sys.stderr.write(f"eval: {type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
    application()
