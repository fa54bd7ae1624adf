"""report.html of a registration and index.html of a study: self-contained pages. jinja2 escapes all names and texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from rdmm.runtime.warnings import other_warnings

WORST_FIRST = {"dice": 1, "tre_mm": -1, "distance_after_mm": -1, "hd95_mm": -1, "folds_percent": -1}
"""A study is sorted by the first of these metrics that it has. 1: low values are bad; -1: high values are."""


def runnable(command: str) -> str:
    """A recorded command, which does not say where its results went, as one that can be run."""
    return f"{command} -o OUT/" if command else ""


@cache
def load_template(name: str) -> jinja2.Template:
    """A page of the folder pages; it escapes all texts."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
    return jinja2.Environment(autoescape=True, loader=loader, undefined=jinja2.StrictUndefined).get_template(name)


def render(
    summary: Mapping[str, Any], pictures: Sequence[tuple[str, str]], frames: Sequence[Mapping[str, Any]] = (), points: bool = False
) -> str:
    """The page of a registration.

    It is the same for two runs with the same settings: what differs (times, memory) is in run.json only.

    Args:
        summary: the content of run.json.
        pictures: (heading, base64 PNG).
        frames: the animation (image_frames, shape_frames).
        points: whether the frames show points rather than grid lines.
    """
    import yaml

    files = summary["inputs"]
    title = f"{files.get('moving', {}).get('path', 'moving')} onto {files.get('fixed', {}).get('path', 'fixed')}"
    facts = [("command", runnable(summary["command"]))] if summary["command"] else []
    facts += [(k, f"{v['path']} (sha256 {v['sha256']})") for k, v in files.items()]
    facts += [(k, summary[k]) for k in ("device", "seed")]
    facts += [(f"version of {k}", v) for k, v in summary["versions"].items()]
    return load_template("pair.html").render(
        title=title,
        status=summary["status"],
        verdict=summary.get("verdict", ""),
        reasons=summary.get("reasons", []),
        warnings=other_warnings(summary.get("warnings", []), summary.get("reasons", [])),
        pictures=pictures,
        frames=list(frames),
        lines=[{"t": frame["t"], "lines": [plane["lines"] for plane in frame["planes"]]} for frame in frames],
        points=points,
        metrics=[(k, format_value(v)) for k, v in summary["metrics"].items()],
        facts=facts,
        config=yaml.safe_dump(summary["config"], sort_keys=False),
    )


def render_study(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page of a study: a table with failures first, then doubtful results, each from worst to best (WORST_FIRST).

    Args:
        rows: each has ``status`` and ``message``, and metrics and texts by name, the row's own name first; optionally ``link`` and
            ``thumbnail`` (base64 JPEG).
    """
    hidden = ("link", "thumbnail", "exit_code")
    columns = list(dict.fromkeys(k for row in rows for k in row if k not in hidden))
    metric = next((k for k in WORST_FIRST if k in columns), None)

    def badness(row: Mapping[str, Any]) -> tuple[int, float]:
        value = row.get(metric) if metric else None
        known = isinstance(value, int | float) and math.isfinite(value)
        doubt = 0 if row["status"] != "done" else 1 if row.get("verdict") == "check" else 2 if not known else 3
        return doubt, WORST_FIRST[str(metric)] * float(value or 0) if known else 0.0

    shown = [
        {
            "cells": [_table_cell(row.get(k)) for k in columns],
            "failed": row["status"] != "done",
            "link": row.get("link"),
            "thumbnail": row.get("thumbnail"),
        }
        for row in sorted(rows, key=badness)
    ]
    done = sum(row["status"] == "done" for row in rows)
    means = [f"mean {k} {sum(v) / len(v):.4g} (n {len(v)})" for k in WORST_FIRST if (v := _finite_values(rows, k))]
    summary = ", ".join([f"{done} of {len(rows)} done", *means])
    return load_template("study.html").render(title=title, columns=columns, rows=shown, summary=summary)


def _finite_values(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    found = [row.get(key) for row in rows if row["status"] == "done"]
    return [float(v) for v in found if isinstance(v, int | float) and math.isfinite(v)]


def format_value(value: Any) -> str:
    """Format a value for readers: floats with five digits; a dash for None, NaN and Inf."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {format_value(v)}" for k, v in value.items())
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _table_cell(value: Any) -> dict[str, Any]:
    number = float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    return {"text": "" if value is None else format_value(value), "number": number}
