"""Write report.html of an earlier run, and index.html of a batch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rdmm import io
from rdmm.io.files import write_text
from rdmm.registration.record import find_outputs, read_summary, table_metrics, warning_text
from rdmm.registration.stored import read_run
from rdmm.report.html import render_study
from rdmm.types import InputError, OutputError


def study_rows(folder: Path) -> list[dict[str, Any]]:
    """One row per pair of a batch: from its run.json, or from failures.json (of any shard) if that is newer than the pair's run.json."""
    failures = {}
    for path in sorted(folder.glob("failures*.json"), key=_modification_time):
        for row in _read_failures(path):
            failures[row["id"]] = (_modification_time(path), row)
    rows = []
    for path in sorted(folder.glob("*/run.json")):
        id, link = path.parent.name, quote(os.fsencode(f"{path.parent.name}/report.html"))
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
    """Modification time, ns."""
    return path.stat().st_mtime_ns


def _read_failures(path: Path) -> list[dict[str, Any]]:
    """Id, status and message of the pairs in a failures.json."""
    try:
        return [{k: r[k] for k in ("id", "status", "message")} for r in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a failures.json of rdmm batch ({type(error).__name__}: {error})") from error


def write_index(folder: Path) -> Path:
    """Write index.html of a batch's folder. Returns its path."""
    path = folder / "index.html"
    write_text(path, render_study(f"Study {folder.resolve().name}", study_rows(folder)))
    return path


def write_report(run: str, *, overwrite: bool) -> Path:
    """``rdmm report``: write report.html of a run again, or index.html of a batch's folder.

    Raises:
        InputError: there is no run, or its files have changed.
        OutputError: the page exists and ``overwrite`` is false.
    """
    outputs, folder = find_outputs(run), Path(run)
    record = outputs.path("run.json")
    is_run = os.path.exists(record)
    if not is_run and not (os.path.isdir(folder) and any(folder.glob("*/run.json"))):
        raise InputError(f"{run}: no run found; give the folder, prefix or run.json of rdmm register, or the folder of rdmm batch")
    summary = read_summary(record) if is_run else {}
    path = outputs.path("report.html") if is_run else folder / "index.html"
    if os.path.exists(path) and not overwrite:
        raise OutputError(f"{path}: already exists; pass --overwrite to replace it")
    if not is_run:
        return write_index(folder)
    page = read_run(outputs, summary).render_report(summary)
    write_text(path, page)
    checksums = {**summary["outputs"], "report.html": io.sha256(path)}
    io.write_atomically(record, json.dumps({**summary, "outputs": checksums}, indent=1, allow_nan=False).encode())
    return path
