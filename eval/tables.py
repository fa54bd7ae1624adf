"""Tables of a study: all rows as CSV, and the means of every method as markdown."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdmm.io import write_atomically

Row = dict[str, Any]

WORST = ("folds_percent", "folded_cells_percent", "energy_drift")
"""Measures of which the largest is shown, not the mean: one bad case is one too many."""

SHOWN = {
    "similarity": "similarity term",
    "dice": "Dice",
    "region_dice": "Dice of the region",
    "distance_after_mm": "distance mm",
    "hd95_after_mm": "HD95 mm",
    "tre_before_mm": "TRE before mm",
    "tre_mm": "TRE mm",
    "tre_liver_mm": "TRE liver mm",
    "tre_outside_mm": "TRE outside mm",
    "sd_log_jacobian": "SDlogJ",
    "sd_log_jacobian_outside": "SDlogJ outside",
    "folds_percent": "folds %, worst",
    "folded_cells_percent": "folded cells %, worst",
    "energy_drift": "energy drift, worst",
    "seconds": "seconds",
}


def brief(row: Row) -> str:
    """A row in one line."""
    if row["status"] != "done":
        return str(row["status"])
    return ", ".join(f"{title} {row[k]:.4g}" for k, title in SHOWN.items() if k in row and math.isfinite(row[k]))


def write(rows: Sequence[Row], out: Path) -> None:
    """``table.csv`` and ``table.md`` in the folder ``out``."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "table.csv", buffer.getvalue().encode())
    write_atomically(out / "table.md", markdown(rows).encode())


def groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by data set and method, in their order."""
    out: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        out.setdefault((row["data"], row["method"]), []).append(row)
    return out


def values(rows: Sequence[Row], key: str) -> list[float]:
    """A measure of the rows that have it; NaN (not measured) is left out."""
    return [float(r[key]) for r in rows if r["status"] == "done" and math.isfinite(r.get(key, math.nan))]


def markdown(rows: Sequence[Row]) -> str:
    """Mean ± standard deviation, or the worst, of each measure by data set and method."""
    shown = {k: title for k, title in SHOWN.items() if values(rows, k)}
    lines = ["| data | method | n | failed | " + " | ".join(shown.values()) + " |", "|---" * (len(shown) + 4) + "|"]
    for (data, method), group in groups(rows).items():
        failed = sum(r["status"] != "done" for r in group)
        cells = [_cell(values(group, k), k in WORST) for k in shown]
        lines.append(f"| {data} | {method} | {len(group)} | {failed} | " + " | ".join(cells) + " |")
    failures = [f"- {r['case']}, {r['method']}: {r['status']}" for r in rows if r["status"] != "done"]
    return "\n".join([*lines, "", *failures]).rstrip() + "\n"


def _cell(numbers: list[float], worst: bool) -> str:
    if not numbers:
        return ""
    if worst:
        return f"{max(numbers):.2g}"
    spread = f" ± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.4g}{spread}"
