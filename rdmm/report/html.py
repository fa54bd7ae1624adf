"""report.html and index.html: self-contained pages of a registration and of a study. Names and texts are escaped (jinja2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

WORST_FIRST = {"dice": 1, "tre_mm": -1, "distance_after_mm": -1, "hd95_mm": -1, "folds_percent": -1}
"""Measures by which a study is sorted, the first that it has; 1: small is bad."""


@cache
def _load_template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
    return jinja2.Environment(autoescape=True, loader=loader, undefined=jinja2.StrictUndefined).get_template(name)


def render(
    summary: Mapping[str, Any], pictures: Sequence[tuple[str, str]], frames: Sequence[Mapping[str, Any]] = (), points: bool = False
) -> str:
    """The page of a registration.

    It holds nothing that differs between two runs of the same (times, memory): these are in run.json.

    Args:
        summary: what run.json holds.
        pictures: (heading, base64 PNG).
        frames: of the animation (image_frames, shape_frames).
        points: whether their lines are points.
    """
    import yaml

    files = summary["inputs"]
    title = f"{files.get('moving', {}).get('path', 'moving')} onto {files.get('fixed', {}).get('path', 'fixed')}"
    facts = [("command", summary["command"])] if summary["command"] else []
    facts += [(k, f"{v['path']} (sha256 {v['sha256']})") for k, v in files.items()]
    facts += [(k, summary[k]) for k in ("device", "seed")]
    facts += [(f"version of {k}", v) for k, v in summary["versions"].items()]
    return _load_template("pair.html").render(
        title=title,
        status=summary["status"],
        warnings=summary.get("warnings", []),
        pictures=pictures,
        frames=list(frames),
        lines=[{"t": frame["t"], "lines": [plane["lines"] for plane in frame["planes"]]} for frame in frames],
        points=points,
        metrics=[(k, _format_value(v)) for k, v in summary["metrics"].items()],
        facts=facts,
        config=yaml.safe_dump(summary["config"], sort_keys=False),
    )


def render_study(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The list of a study, worst first: what failed, then by the first of WORST_FIRST that is there.

    Args:
        rows: ``status`` and ``message``, any measures and texts by name (the first is the row's name), and, where there are any,
            ``link`` and ``thumbnail`` (base64 JPEG).
    """
    hidden = ("link", "thumbnail", "exit_code")
    columns = list(dict.fromkeys(k for row in rows for k in row if k not in hidden))
    measure = next((k for k in WORST_FIRST if k in columns), None)

    def badness(row: Mapping[str, Any]) -> tuple[int, float]:
        value = row.get(measure) if measure else None
        known = isinstance(value, int | float) and math.isfinite(value)
        return (0 if row["status"] != "done" else 1 if not known else 2), WORST_FIRST[str(measure)] * float(value or 0) if known else 0.0

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
    return _load_template("study.html").render(title=title, columns=columns, rows=shown, summary=summary)


def _finite_values(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    found = [row.get(key) for row in rows if row["status"] == "done"]
    return [float(v) for v in found if isinstance(v, int | float) and math.isfinite(v)]


def _format_value(value: Any) -> str:
    """As one reads it; what is no number is a dash."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_format_value(v)}" for k, v in value.items())
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _table_cell(value: Any) -> dict[str, Any]:
    number = float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    return {"text": "" if value is None else _format_value(value), "number": number}
