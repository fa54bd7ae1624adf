"""Reports of runs that were written earlier, and the index of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rdmm import io
from rdmm.registration.record import find_outputs, read_summary, table_metrics, warning_text
from rdmm.registration.stored import read_run
from rdmm.report.html import render_study
from rdmm.types import InputError, OutputError


def study_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a batch's list: every run.json in a folder of its own, and what its failures.json (of every shard) tell, unless
    the pair was done after they were written."""
    told = sorted(folder.glob("failures*.json"), key=_modification_time)
    failures = {row["id"]: (_modification_time(path), row) for path in told for row in _read_failures(path)}
    rows = []
    for path in sorted(folder.glob("*/run.json")):
        id, link = path.parent.name, quote(f"{path.parent.name}/report.html")
        failed_at, failure = failures.pop(id, (0, {}))
        if failed_at >= _modification_time(path):
            rows.append(failure | {"link": link})
            continue
        try:
            run = read_summary(path)
        except InputError as error:
            rows.append({"id": id, "status": "unreadable", "message": str(error)})
            continue
        shown = {"id": id, "status": run["status"], "message": warning_text(run), **table_metrics(run)}
        rows.append({**shown, "thumbnail": run.get("thumbnail"), "link": link})
    return rows + [row for _, row in failures.values()]


def _modification_time(path: Path) -> int:
    """When, in nanoseconds."""
    return path.stat().st_mtime_ns


def _read_failures(path: Path) -> list[dict[str, Any]]:
    try:
        return [{k: r[k] for k in ("id", "status", "message")} for r in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a failures.json of rdmm batch ({type(error).__name__}: {error})") from error


def write_index(folder: Path) -> Path:
    """``index.html`` of a batch's folder."""
    path = folder / "index.html"
    io.write_atomically(path, render_study(f"Study {folder.resolve().name}", study_rows(folder)).encode())
    return path


def write_report(run: str, *, overwrite: bool) -> Path:
    """``rdmm report``: report.html of a run anew, or index.html of a batch's folder.

    Raises:
        InputError: there is no run, or its files have changed.
        OutputError: the page is there already.
    """
    outputs, folder = find_outputs(run), Path(run)
    one = outputs.path("run.json").exists()
    if not one and not (folder.is_dir() and any(folder.glob("*/run.json"))):
        raise InputError(f"{run}: no run there; the folder, prefix or run.json of rdmm register is wanted, or the folder of rdmm batch")
    path = outputs.path("report.html") if one else folder / "index.html"
    summary = read_summary(outputs.path("run.json")) if one else {}
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: is there already; pass --overwrite")
    if not one:
        return write_index(folder)
    done = read_run(outputs, summary)
    page = done.render_report(summary)
    io.write_atomically(path, page.encode())
    text = outputs.path("run.json")
    whole = {**summary, "outputs": {**summary["outputs"], "report.html": io.sha256(path)}}
    io.write_atomically(text, json.dumps(whole, indent=1, allow_nan=False).encode())
    return path
