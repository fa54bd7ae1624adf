"""Write report.html of an earlier run, and index.html of a batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rdmm.io import Outputs
from rdmm.io.files import encode_text, write_text
from rdmm.registration.base import PAGE
from rdmm.registration.record import find_outputs, read_summary, table_row
from rdmm.registration.schema import read_plain_json
from rdmm.registration.stored import read_run
from rdmm.report.html import render_study
from rdmm.types import InputError, OutputError, RdmmError, option


def study_rows(folder: Path) -> list[dict[str, Any]]:
    """One row per pair of a batch: from its run.json, or from failures.json (of any shard) if that is newer than the pair's run.json."""
    failures = {}
    for path in sorted(folder.glob("failures*.json"), key=_modification_time):
        for row in _read_failures(path):
            failures[row["id"]] = (_modification_time(path), row)
    rows = []
    for path in sorted(folder.glob("*/run.json")):
        id, page = path.parent.name, path.parent / PAGE
        link = quote(os.fsencode(f"{id}/{PAGE}")) if page.exists() else None
        failed_at, failure = failures.pop(id, (0, {}))
        if failed_at >= _modification_time(path):
            rows.append(failure | {"link": link})
            continue
        try:
            run = read_summary(path)
        except InputError as error:
            rows.append({"id": id, "status": "unreadable", "message": str(error)})
            continue
        rows.append({"id": id, **table_row(run), "thumbnail": run.get("thumbnail"), "link": link})
    return rows + [row for _, row in failures.values()]


def _modification_time(path: Path) -> int:
    """Modification time, ns."""
    return path.stat().st_mtime_ns


def _read_failures(path: Path) -> list[dict[str, Any]]:
    """Id, status and message of the pairs in a failures.json."""
    wanted = ("id", "status", "message")
    rows = read_plain_json(path, "failures.json of rdmm batch")
    if not isinstance(rows, list) or not all(isinstance(r, dict) and all(isinstance(r.get(k), str) for k in wanted) for r in rows):
        raise InputError(f"{path}: not a failures.json of rdmm batch: it must be a list of objects with the texts {', '.join(wanted)}")
    return [{k: r[k] for k in wanted} for r in rows]


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
    path = outputs.path(PAGE) if is_run else folder / "index.html"
    if os.path.exists(path) and not overwrite:
        raise OutputError(f"{path}: already exists; pass {option('overwrite')} to replace it")
    if not is_run:
        return write_index(folder)
    page = _render(outputs, summary)
    others = {k: v for k, v in summary["outputs"].items() if k != PAGE}
    _write_record(record, {**summary, "outputs": others})  # at no time does run.json vouch for another page
    write_text(path, page)
    checksum = hashlib.sha256(encode_text(page)).hexdigest()
    _write_record(record, {**summary, "outputs": {**others, PAGE: checksum}})
    return path


def reported_facts(page: Path) -> dict[str, Any]:
    """What a page of ``write_report`` shows in short: the verdict and the metrics of a run, or how many pairs of a batch ended how."""
    if page.name == "index.html":
        rows = study_rows(page.parent)
        endings = Counter(str(row.get("verdict") or row["status"]) for row in rows)
        return {"pairs": len(rows), **dict(endings.most_common())}
    run = read_summary(page.with_name(page.name.removesuffix(PAGE) + "run.json"))
    verdict = {"verdict": run["verdict"], "reasons": run.get("reasons", [])} if "verdict" in run else {}
    return {**verdict, **{k: v for k, v in run["metrics"].items() if isinstance(v, int | float)}}


def _write_record(path: Path, summary: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(summary, indent=1, allow_nan=False))


def _render(outputs: Outputs, summary: Mapping[str, Any]) -> str:
    """The page of a run. Whatever keeps an altered run from being shown is an InputError."""
    try:
        return read_run(outputs, summary).render_report(summary)
    except (RdmmError, MemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:200]
        raise InputError(f"{outputs.path('run.json')}: no report can be made of this run ({text}); register again") from error
