"""3D Slicer's lists of points (.fcsv, .mrk.json), which declare LPS or RAS."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from rdmm.io.tables import Table, format_row, read_fields
from rdmm.types import InputError

FRAMES = {"RAS": False, "0": False, "LPS": True, "1": True}
"""Whether a frame is LPS, by the name that Slicer's files give it; old ones number the frames."""

FCSV_COLUMNS = {"id": "", "x": "", "y": "", "z": "", "ow": "0", "ox": "0", "oy": "0", "oz": "1", "vis": "1", "sel": "1", "lock": "0"}
FCSV_COLUMNS |= {"label": "", "desc": "", "associatedNodeID": ""}
"""Columns of an .fcsv file, and what they hold where a list says nothing else."""

SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"

LABELS = ("label", "name", "id", "comment")
"""Columns that name a point, the best first."""


def _is_lps(path: Path, frame: Any) -> bool:
    """Whether the frame that a file declares is LPS and not RAS."""
    if str(frame) not in FRAMES:
        raise InputError(f"{path}: its points must be declared as LPS or RAS, not {str(frame)[:20]!r}; save them in world coordinates")
    return FRAMES[str(frame)]


def read_fcsv(path: Path) -> tuple[Table, np.ndarray]:
    """Slicer's fiducials before 5.0: comments that name the frame and the columns, then rows, which may be longer or shorter.

    Returns:
        the table, and whether its points are in LPS (1 value).
    """
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


def read_markups(path: Path) -> tuple[Table, np.ndarray, dict[str, Any]]:
    """The control points of all lists of a .mrk.json file, whether each is in LPS, and the whole content of the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        lists = content["markups"]
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
    return table, np.array([_is_lps(path, frame) for _, frame, _ in points], dtype=bool), content


def render_fcsv(points: Sequence[Sequence[str]], table: Table) -> str:
    """A list of points in LPS+, as Slicer writes .fcsv files; the other columns are those of ``table`` that such files have.

    Args:
        points: x, y, z of each point in LPS+.
    """
    names = {"description": "desc"}
    rows = []
    for number, (xyz, row) in enumerate(zip(points, table.rows, strict=True), 1):
        known = {names.get(k, k): v for k, v in row.items()}
        own = {k: known.get(k) or default for k, default in FCSV_COLUMNS.items()}
        own |= dict(zip("xyz", xyz, strict=True)) | {"id": own["id"] or str(number), "label": own["label"] or _label(row, number)}
        rows.append(format_row(list(own.values())))
    head = f"# Markups fiducial file version = 5.0\n# CoordinateSystem = LPS\n# columns = {','.join(FCSV_COLUMNS)}\n"
    return head + "".join(rows)


def render_markups(points: np.ndarray, table: Table, content: dict[str, Any] | None, is_lps: np.ndarray) -> str:
    """A .mrk.json file: that of ``content`` with its points moved, or a new list in LPS+.

    Args:
        points: RAS+ millimeters (n, 3).
        content: of the .mrk.json file that the points come from; None: they come from another file.
        is_lps: whether each point of ``content`` is in LPS+.
    """
    if content is not None:
        content = deepcopy(content)
        own = iter(np.where(is_lps[:, None], points * [-1, -1, 1], points).tolist())
        for one in content["markups"]:
            one.pop("measurements", None)  # lengths and angles at the old place; Slicer computes them
            for point in one["controlPoints"]:
                point["position"] = [float(f"{x:.9g}") for x in next(own)]
        return json.dumps(content, indent=1) + "\n"
    control = [
        {
            "id": str(number),
            "label": _label(row, number),
            "description": row.get("description", row.get("desc", "")),
            "position": [float(f"{x:.9g}") for x in point],
            "positionStatus": "defined",
        }
        for number, (point, row) in enumerate(zip((points * [-1, -1, 1]).tolist(), table.rows, strict=True), 1)
    ]
    one = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": control}
    return json.dumps({"@schema": SCHEMA, "markups": [one]}, indent=1) + "\n"


def _label(row: dict[str, str], number: int) -> str:
    return next((row[k] for k in LABELS if row.get(k)), f"F-{number}")
