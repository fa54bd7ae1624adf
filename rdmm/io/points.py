"""Lists of points in world millimeters: CSV, and the markups of Slicer (.fcsv, .mrk.json), which declare LPS or RAS."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdmm.io.files import require_ending, require_file
from rdmm.io.tables import Table, parse_numbers, read_fields, read_rows, require_rows, write_fields
from rdmm.types import ConfigError, InputError, OutputError

log = logging.getLogger(__name__)

FRAMES = {"RAS": False, "0": False, "LPS": True, "1": True}
"""Whether a frame is LPS, by the name that Slicer's files give it; old ones number the frames."""


@dataclass(frozen=True, eq=False)
class PointList:
    """Points (n, d) in world millimeters (RAS+), with the table that they come from.

    Args:
        table: its columns x, y[, z] are written anew, all others as they are.
        lps: the points are written in LPS+.
    """

    points: np.ndarray
    table: Table
    lps: bool = False


def read_points(path: str | os.PathLike[str], ndim: int, *, lps: bool = False) -> PointList:
    """Read the columns x, y[, z] of a CSV, or the points of Slicer's markups, which are converted to RAS+.

    Args:
        ndim: dimension of the transform that they go through.
        lps: the CSV is in LPS+, as ANTs and ITK write points, and is written so again.

    Raises:
        ConfigError: ``lps`` together with markups, which declare their frame.
        InputError: a column is missing, a value is not a finite number, or the points have another dimension than ``ndim``.
    """
    path = require_file(path)
    kind = path.suffix.lower()
    if kind in (".fcsv", ".json"):
        if lps:
            raise ConfigError(f"{path}: Slicer's markups declare their frame; leave out --lps")
        table, is_lps = _read_fcsv(path) if kind == ".fcsv" else _read_markups(path)
    else:
        table, is_lps = read_rows(path), np.full(1, lps)
        if table.columns[:4] == ["x", "y", "z", "t"] and not lps:
            log.warning(
                "%s: x,y,z,t are the columns of ANTs, whose points are LPS; they are read as RAS+: use --lps if ANTs wrote them", path
            )
    if ("z" in table.columns) != (ndim == 3):
        have = 3 if "z" in table.columns else 2
        raise InputError(f"{path}: the points are {have}D ({'a' if have == 3 else 'no'} column 'z') but the transform is {ndim}D")
    axes = list("xyz"[:ndim])
    require_rows(table, path, axes)
    return PointList(_flipped(parse_numbers(path, table, axes), is_lps), table, lps)


def write_points(path: str | os.PathLike[str], points: PointList) -> None:
    """Write a list of points as CSV: nine significant digits, and all other columns of its table.

    Raises:
        ConfigError: the name does not end in .csv.
        OutputError: the file cannot be written, or a point is not finite; the message names its row in the list that was read.
    """
    path = require_ending(path, [".csv"], "a list of points")
    table, finite = points.table, np.isfinite(points.points).all(1)
    if not finite.all():
        k = int(np.argmin(finite))
        raise OutputError(
            f"{path}: not written: the point of row {table.lines[k]} goes to {points.points[k].tolist()} (NaN or Inf); check the transform"
        )
    written = _flipped(points.points, np.full(1, points.lps)) + 0.0  # no -0
    axes = "xyz"[: written.shape[1]]
    rows = [row | {a: f"{x:.9g}" for a, x in zip(axes, xs, strict=True)} for row, xs in zip(table.rows, written, strict=True)]
    write_fields(path, [table.columns, *([row[c] for c in table.columns] for row in rows)])


def _flipped(points: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Points (n, d) with x and y negated, from LPS to RAS or back, where ``where`` (n or 1) is true."""
    signs = np.array([-1.0, -1.0, 1.0])[: points.shape[1]]
    return np.where(where[:, None], points * signs, points)


def _is_lps(path: Path, frame: Any) -> bool:
    """Whether the frame that a file declares is LPS and not RAS."""
    if str(frame) not in FRAMES:
        raise InputError(f"{path}: its points must be declared as LPS or RAS, not {str(frame)[:20]!r}; save them in world coordinates")
    return FRAMES[str(frame)]


def _read_fcsv(path: Path) -> tuple[Table, np.ndarray]:
    """Slicer's fiducials before 5.0: comments that name the frame and the columns, then rows, which may be longer or shorter."""
    lines = list(read_fields(path))
    comments = [",".join(row) for _, row in lines if row[0].startswith("#")]
    facts = {m[1]: m[2].strip() for m in (re.match(r"#\s*(CoordinateSystem|columns)\s*=(.*)", c) for c in comments) if m}
    columns = [c.strip() for c in facts.get("columns", "").split(",")]
    if len(set(columns)) < len(columns):
        raise InputError(f"{path}: a column occurs twice in its line '# columns = ...'")
    rows = [(line, row) for line, row in lines if not row[0].startswith("#")]
    width = max([len(columns), *(len(row) for _, row in rows)])
    columns += [f"more{k + 1}" for k in range(width - len(columns))]
    filled = [dict(zip(columns, row + [""] * (width - len(row)), strict=True)) for _, row in rows]
    return Table(columns, filled, [line for line, _ in rows]), np.full(1, _is_lps(path, facts.get("CoordinateSystem")))


def _read_markups(path: Path) -> tuple[Table, np.ndarray]:
    """The control points of all lists of a .mrk.json file, and whether each is in LPS."""
    try:
        lists = json.loads(path.read_text(encoding="utf-8-sig"))["markups"]
        points = [(p, m.get("coordinateSystem"), m.get("coordinateUnits", "mm")) for m in lists for p in m["controlPoints"]]
        rows = []
        for number, (p, _, unit) in enumerate(points, 1):
            if not isinstance(p["position"], list) or len(p["position"]) != 3 or unit not in ("mm", ["mm", "mm", "mm"]):
                raise InputError(f"{path}: row {number}: the position must be three numbers in mm, not {str(p['position'])[:60]} {unit}")
            texts = {k: str(p.get(k, "")) for k in ("id", "label", "description")}
            rows.append(texts | {a: str(x) for a, x in zip("xyz", p["position"], strict=True)})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a markups file of Slicer (.mrk.json) with defined points ({error})") from error
    table = Table(["id", "label", "description", "x", "y", "z"], rows, list(range(1, len(rows) + 1)))
    return table, np.array([_is_lps(path, frame) for _, frame, _ in points], dtype=bool)
