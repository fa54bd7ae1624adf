"""Runs read back from their folders: for their reports, and for the list of a study."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rdmm import io, pictures
from rdmm.config import build
from rdmm.dynamics import InitialConditions
from rdmm.grid import Grid
from rdmm.inputs import Inputs, read_inputs
from rdmm.io import Outputs
from rdmm.io.files import existing
from rdmm.record import measures, message
from rdmm.registration import Registration, deforms
from rdmm.report import render, render_study
from rdmm.stages import Result
from rdmm.transform import Affine, Identity, Transform, composed, framed
from rdmm.types import BESIDE, InputError, OutputError

FURTHER = (*BESIDE, "landmarks", "regions", "fixed_regions")


def outputs_of(run: str) -> Outputs:
    """The files of a run that is named by its folder, its prefix or its run.json."""
    text = run.removesuffix("run.json")
    return Outputs(f"{text}/" if Path(text or ".").is_dir() and not text.endswith("/") else text)


def summary_of(path: Path) -> dict[str, Any]:
    """What a run.json holds.

    Raises:
        InputError: it is missing, or not what a run of rdmm writes.
    """
    try:
        run = json.loads(existing(path).read_text(encoding="utf-8"))
        wrong = [k for k in ("inputs", "config", "metrics", "seconds", "versions", "outputs") if not isinstance(run[k], dict)]
        wrong += [] if isinstance(run.get("warnings", []), list) else ["warnings"]
        if wrong or not all({"path", "sha256"} <= set(v) for v in run["inputs"].values()):
            raise TypeError(f"{(wrong or ['inputs'])[0]} is not as a run writes it")
        measures(run)
        return dict(run)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a run.json of rdmm ({type(error).__name__}: {error})") from error


def read_run(outputs: Outputs, summary: Mapping[str, Any]) -> Registration:
    """A registration of images from what it wrote.

    Its geodesic is shot again where it was the only deformation and went on from no initial transform; else there is none
    (``result.ic`` is None).

    Raises:
        InputError: a file is missing, or no longer what it was at the time of the run.
    """
    files = {k: v["path"] for k, v in summary["inputs"].items()}
    if any(io.is_mesh(name) for name in files.values()):
        raise InputError(f"{outputs.path('run.json')}: a run of shapes, whose report is made with it: register again with --overwrite")
    if not {"fixed", "moving"} <= set(files):
        raise InputError(f"{outputs.path('run.json')}: its images were no files; Registration.save makes the report of such a run")
    sums = {v["path"]: v["sha256"] for v in summary["inputs"].values()}
    sums |= {str(outputs.path(k)): v for k, v in summary["outputs"].items() if k != "report.html"}
    for name, wanted in sums.items():
        if io.sha256(existing(name)) != wanted:
            raise InputError(f"{name}: not the file of this run any more (its sha256 differs); register again")
    further = {k: files[k] for k in FURTHER if k in files}
    inputs = read_inputs(files["fixed"], files["moving"], **further, **_options(summary.get("command", "")), require_overlap=False)
    stages = build(summary["config"]["stages"], "stages")
    result = _result(outputs, inputs, summary, again=len(deforms(stages)) == 1 and "initial" not in files)
    settings = {"stages": stages, "output": build(summary["config"]["output"], "output")}
    return Registration(inputs, result, summary["config"], settings, summary["status"])


def _result(outputs: Outputs, inputs: Inputs, summary: Mapping[str, Any], again: bool) -> Result:
    grid = inputs.pair.fixed.grid
    before = _transform(outputs, "0GenericAffine.mat", grid)
    u, w = (_transform(outputs, name, grid) for name in ("1Warp.nii.gz", "1InverseWarp.nii.gz"))
    inverse = composed(before.inverse(), w) if isinstance(before, Affine) else w
    conditions = outputs.path("initial_conditions.safetensors")
    ic = _conditions(conditions) if again and conditions.exists() else None
    return Result(composed(u, before), inverse, dict(summary["energy"]), ic, list(summary["history"]), dict(summary["seconds"]), before)


def _transform(outputs: Outputs, name: str, grid: Grid) -> Transform:
    path = outputs.path(name)
    return framed(io.read_transform(str(path)), grid) if path.exists() else Identity()


def _conditions(path: Path) -> InitialConditions:
    from safetensors.torch import load

    try:
        return InitialConditions(**load(path.read_bytes()))
    except Exception as error:
        raise InputError(f"{path}: not the initial conditions of a run ({error})") from error


def _options(command: str) -> dict[str, Any]:
    """How the command read its images."""
    words = shlex.split(command)
    found = {name: words[words.index(f"--{name}") + 1] for name in ("nan", "volume") if f"--{name}" in words}
    return {**found, **({"volume": int(found["volume"])} if "volume" in found else {}), "strict": "--strict" in words}


def study_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a batch's list: every run.json in a folder of its own, and what its failures.json (of every shard) tell, unless
    the pair was done after they were written."""
    told = sorted(folder.glob("failures*.json"), key=_written)
    failures = {row["id"]: (_written(path), row) for path in told for row in _failures(path)}
    rows = []
    for path in sorted(folder.glob("*/run.json")):
        id, link = path.parent.name, quote(f"{path.parent.name}/report.html")
        failed_at, failure = failures.pop(id, (0, {}))
        if failed_at >= _written(path):
            rows.append(failure | {"link": link})
            continue
        try:
            run = summary_of(path)
        except InputError as error:
            rows.append({"id": id, "status": "unreadable", "message": str(error)})
            continue
        shown = {"id": id, "status": run["status"], "message": message(run), **measures(run)}
        rows.append({**shown, "thumbnail": run.get("thumbnail"), "link": link})
    return rows + [row for _, row in failures.values()]


def _written(path: Path) -> int:
    """When, in nanoseconds."""
    return path.stat().st_mtime_ns


def _failures(path: Path) -> list[dict[str, Any]]:
    try:
        return [{k: r[k] for k in ("id", "status", "message")} for r in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a failures.json of rdmm batch ({type(error).__name__}: {error})") from error


def write_index(folder: Path) -> Path:
    """``index.html`` of a batch's folder."""
    path = folder / "index.html"
    io.write_atomically(path, render_study(f"Study {folder.resolve().name}", study_rows(folder)).encode())
    return path


def report(run: str, *, overwrite: bool) -> Path:
    """``rdmm report``: report.html of a run anew, or index.html of a batch's folder.

    Raises:
        InputError: there is no run, or its files have changed.
        OutputError: the page is there already.
    """
    outputs, folder = outputs_of(run), Path(run)
    one = outputs.path("run.json").exists()
    if not one and not (folder.is_dir() and any(folder.glob("*/run.json"))):
        raise InputError(f"{run}: no run there; the folder, prefix or run.json of rdmm register is wanted, or the folder of rdmm batch")
    path = outputs.path("report.html") if one else folder / "index.html"
    summary = summary_of(outputs.path("run.json")) if one else {}
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: is there already; pass --overwrite")
    if not one:
        return write_index(folder)
    done = read_run(outputs, summary)
    page = render(summary, pictures.pictures(done), pictures.frames(done))
    io.write_atomically(path, page.encode())
    text = outputs.path("run.json")
    whole = {**summary, "outputs": {**summary["outputs"], "report.html": io.sha256(path)}}
    io.write_atomically(text, json.dumps(whole, indent=1, allow_nan=False).encode())
    return path
