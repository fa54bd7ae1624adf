"""Tables of a study: all rows as CSV and JSON; means of each method as markdown and LaTeX, with tests against a baseline."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdmm.io import write_atomically, write_table
from rdmm.registration.record import nan_to_null

Row = dict[str, Any]

SHOWN_BY_LARGEST = ("folds_percent", "folded_cells_percent", "ndv_percent", "energy_drift", "hd95_empty")
"""Metrics of which tables show the largest value and not the mean: a single bad case matters."""

TITLES = {
    "similarity": "similarity term",
    "dice": "Dice",
    "region_dice": "Dice of the region",
    "hd95_mm": "HD95 mm",
    "hd95_empty": "empty labels, worst",
    "distance_after_mm": "distance mm",
    "hd95_after_mm": "HD95 mm",
    "feature_distance_before": "feature distance before",
    "feature_distance_after": "feature distance",
    "tre_before_mm": "TRE before mm",
    "tre_mm": "TRE mm",
    "tre_liver_mm": "TRE liver mm",
    "tre_outside_mm": "TRE outside mm",
    "sd_log_jacobian": "SDlogJ",
    "sd_log_jacobian_subject": "SDlogJ subject",
    "sd_log_jacobian_inside": "SDlogJ inside",
    "sd_log_jacobian_outside": "SDlogJ outside",
    "folds_percent": "folds %, worst",
    "folded_cells_percent": "folded cells %, worst",
    "ndv_percent": "NDV %, worst",
    "inverse_consistency_mm": "inverse error mm",
    "inverse_consistency_subject_mm": "inverse error mm subject",
    "energy_drift": "energy drift, worst",
    "refined_similarity_percent": "refined: similarity, change %",
    "refined_dice": "refined: Dice",
    "refined_map_mm": "refined: map, change mm",
    "seconds": "seconds",
    "peak_memory_mb": "peak MB",
}

ROBUSTNESS_PERCENTILES = {"dice": 30, "region_dice": 30, "tre_mm": 70, "hd95_mm": 70}
"""30 % robustness (Learn2Reg): the percentile that separates the worst 30 % of the cases."""

OVERLAPS = ("dice", "region_dice", "refined_dice")
"""Metrics of which larger values are better."""

DISTANCES = ("tre_mm", "tre_liver_mm", "tre_outside_mm", "hd95_mm", "hd95_after_mm", "distance_after_mm")

TESTED_METRICS = ("dice", "region_dice", "similarity", *DISTANCES)
"""Metrics that are tested against a baseline, as are the errors against a true map (is_error)."""

THUMBNAIL = "thumbnail"
"""Key of a row's picture. Only index.html shows it."""

SIGNIFICANT = 0.05
"""A method differs from the baseline if Holm's p is below it."""

MIN_TEST_PAIRS = 5
"""Fewest pairs for a test: with fewer, a two-sided signed-rank test never gets below .05."""

NOTES = (
    "Means ± standard deviation over the cases that have the measure (n where these are fewer); 'worst': the largest. "
    "Folds: voxels with det <= 0 by central differences; folded cells: any of the ten (2D: four) corner determinants <= 0; NDV: the "
    "volume that these fold. SDlogJ: over the whole volume; subject: in the fixed mask, else the fixed labels, else the foreground. "
    "HD95: the larger of both directions' 95th percentile, by area (surface-distance). "
    "30 %: the value that the worst 30 % of the cases do not reach. Errors: distances from the true map; %: of the longest edge. "
    "Refined: the same initial conditions shot again with voxels and steps of half the size; the seconds are without it."
)


def is_error(key: str) -> bool:
    """Whether a measure is an error against a true map, of all voxels or of a region: error_mm, error_lung_mm, error_lung_max_mm."""
    return re.fullmatch(r"error(_\w+)?_(mm|percent)", key) is not None and not key.endswith("_before_mm")


def is_tested(key: str) -> bool:
    """Whether a measure is tested against a baseline."""
    return key in TESTED_METRICS or is_error(key)


def lower_is_better(key: str) -> bool:
    """Whether smaller values of a measure are better: of all but overlaps."""
    return (key in TITLES and key not in OVERLAPS) or is_error(key)


def titles(rows: Sequence[Row]) -> dict[str, str]:
    """The measures that tables show, with their titles: TITLES, after the errors against a true map that ``rows`` have."""
    errors = dict.fromkeys(k for r in rows for k in r if k.startswith("error_"))
    return {k: k.replace("_percent", "_%").replace("_", " ") for k in errors} | TITLES


def format_row(row: Row) -> str:
    """A row in one line."""
    if row["status"] != "done":
        return str(row["status"])
    return ", ".join(f"{title} {row[k]:.4g}" for k, title in titles([row]).items() if k in row and math.isfinite(row[k]))


def write_tables(rows: Sequence[Row], out: Path, baseline: str | None = None, names: Mapping[str, str] | None = None) -> None:
    """``table.csv``, ``table.json``, ``table.md`` and ``table.tex`` in the folder ``out``. ``names``: what ``table.tex`` calls methods."""
    rows = [{k: v for k, v in row.items() if k != THUMBNAIL} for row in rows]
    write_table(out / "table.csv", rows)
    whole = {"rows": rows, "methods": summarize_methods(rows), "tests": compare_with_baseline(rows, baseline)}
    write_atomically(out / "table.json", json.dumps(nan_to_null(whole), indent=1, allow_nan=False).encode())
    write_atomically(out / "table.md", markdown(rows, baseline).encode())
    write_atomically(out / "table.tex", latex(rows, baseline, names).encode())


def group_rows(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by data set and method, in their order."""
    out: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        out.setdefault((row["data"], row["method"]), []).append(row)
    return out


def values(rows: Sequence[Row], key: str) -> list[float]:
    """A metric of the rows that have it, without NaN (not measured)."""
    return [float(r[key]) for r in rows if r["status"] == "done" and math.isfinite(r.get(key, math.nan))]


def robustness_30(rows: Sequence[Row], key: str) -> float:
    """The percentile of ROBUSTNESS_PERCENTILES; NaN if no row has the metric."""
    numbers = values(rows, key)
    return float(np.percentile(numbers, ROBUSTNESS_PERCENTILES[key])) if numbers else math.nan


def summarize_methods(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry for each data set and method: number of cases and of failures, and mean, spread, range and n_valid of each metric."""
    out = []
    for (data, method), group in group_rows(rows).items():
        measures: dict[str, Any] = {}
        for key in titles(rows):
            numbers = values(group, key)
            if numbers:
                spread = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
                least, most = min(numbers), max(numbers)
                measures[key] = {"mean": statistics.fmean(numbers), "sd": spread, "min": least, "max": most, "n_valid": len(numbers)}
                if key in ROBUSTNESS_PERCENTILES:
                    measures[key]["robustness_30"] = robustness_30(group, key)
        failed = sum(r["status"] != "done" for r in group)
        out.append({"data": data, "method": method, "n": len(group), "failed": failed, "measures": measures})
    return out


def compare_with_baseline(rows: Sequence[Row], baseline: str | None) -> list[dict[str, Any]]:
    """Wilcoxon's two-sided signed-rank test of every method against the baseline, over the cases that both have.

    ``p_holm`` is corrected by Holm's method over the methods of a data set and metric.
    """
    if baseline is None:
        return []
    from scipy.stats import wilcoxon

    out: list[dict[str, Any]] = []
    grouped = group_rows(rows)
    for data in dict.fromkeys(d for d, _ in grouped):
        for key in filter(is_tested, titles(rows)):
            found: list[dict[str, Any]] = []
            ours = {r["case"]: r for r in grouped.get((data, baseline), [])}
            for (d, method), group in grouped.items():
                if d != data or method == baseline:
                    continue
                both = [(values([ours[r["case"]]], key), values([r], key)) for r in group if r["case"] in ours]
                pairs = [(a[0], b[0]) for a, b in both if a and b]
                change = [b - a for a, b in pairs]
                if len(pairs) >= MIN_TEST_PAIRS and any(change):
                    p = float(wilcoxon(change).pvalue)
                    found.append(
                        {"data": data, "measure": key, "method": method, "n": len(pairs), "change": statistics.median(change), "p": p}
                    )
            out += _add_holm_correction(found)
    return out


def _add_holm_correction(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tests with ``p_holm``."""
    highest, corrected = 0.0, {}
    for rank, test in enumerate(sorted(found, key=lambda t: t["p"])):
        highest = max(highest, min(1.0, (len(found) - rank) * test["p"]))
        corrected[test["method"]] = highest
    return [{**test, "p_holm": corrected[test["method"]]} for test in found]


def markdown(rows: Sequence[Row], baseline: str | None = None) -> str:
    """Mean ± standard deviation (or the largest value) of each metric by data set and method, tests, failures and warnings."""
    shown = {k: title for k, title in titles(rows).items() if values(rows, k)}
    robust = [k for k in ROBUSTNESS_PERCENTILES if k in shown and any(len(values(g, k)) > 2 for g in group_rows(rows).values())]
    headings = [*shown.values(), *(f"{TITLES[k]}, 30 %" for k in robust)]
    lines = ["| data | method | n | failed | " + " | ".join(headings) + " |", "|---" * (len(headings) + 4) + "|"]
    for (data, method), group in group_rows(rows).items():
        failed = sum(r["status"] != "done" for r in group)
        cells = [_cell(values(group, k), k in SHOWN_BY_LARGEST, len(group) - failed) for k in shown]
        cells += [f"{robustness_30(group, k):.4g}" for k in robust]
        row = [_escape_markdown(name) for name in (data, method)]
        lines.append("| " + " | ".join([*row, str(len(group)), str(failed), *cells]) + " |")
    found = compare_with_baseline(rows, baseline)
    if found:
        lines += ["", f"Against {baseline} (Wilcoxon signed-rank, two-sided; Holm over the methods):", ""]
        lines += ["| data | measure | method | n | median change | p | p, Holm |", "|---|---|---|---|---|---|---|"]
        names = ("data", "measure", "method", "n")
        for t in found:
            cells = [_escape_markdown(str(t[k])) for k in names] + [f"{t['change']:+.3g}", f"{t['p']:.2g}", f"{t['p_holm']:.2g}"]
            lines.append("| " + " | ".join(cells) + " |")
    reported = [(r, r["status"]) for r in rows if r["status"] != "done"]
    reported += [(r, f"warning: {r['warnings']}") for r in rows if r.get("warnings")]
    notes = [f"- {r['data']} {r['case']}, {r['method']}: {text}" for r, text in reported]
    return "\n".join([*lines, "", NOTES, "", *notes]).rstrip() + "\n"


def _cell(numbers: list[float], worst: bool, cases: int) -> str:
    if not numbers:
        return ""
    if worst:
        return f"{max(numbers):.2g}"
    spread = f" ± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.4g}{spread}" + (f" (n {len(numbers)})" if len(numbers) < cases else "")


def latex(rows: Sequence[Row], baseline: str | None = None, names: Mapping[str, str] | None = None) -> str:
    """One LaTeX table (booktabs) for each data set: mean (standard deviation). The best mean of a tested metric is bold if its method
    differs from the baseline by the test (p < .05, Holm)."""
    parts = []
    differs = {(t["data"], t["measure"], t["method"]) for t in compare_with_baseline(rows, baseline) if t["p_holm"] < SIGNIFICANT}
    for data in dict.fromkeys(r["data"] for r in rows):
        of_data = {m: g for (d, m), g in group_rows(rows).items() if d == data}
        named = titles(rows)
        shown = [k for k in named if any(values(g, k) for g in of_data.values())]
        means = {k: {m: statistics.fmean(v) for m, g in of_data.items() if (v := values(g, k))} for k in shown}
        best = {k: (min if lower_is_better(k) else max)(means[k], key=lambda m, k=k: means[k][m]) for k in shown if is_tested(k)}  # type: ignore[misc]
        parts.append(f"% {data}: {max(len(g) for g in of_data.values())} pairs\n\\begin{{tabular}}{{l{'r' * len(shown)}}}\n\\toprule")
        parts.append(" & ".join(["method", *(_escape_tex(named[k]) for k in shown)]) + r" \\" + "\n\\midrule")
        for method, group in of_data.items():
            bold = {k for k in shown if best.get(k) == method and (data, k, method) in differs}
            cells = [_tex_cell(values(group, k), k in SHOWN_BY_LARGEST, k in bold) for k in shown]
            parts.append(" & ".join([_escape_tex((names or {}).get(method, method)), *cells]) + r" \\")
        parts.append("\\bottomrule\n\\end{tabular}\n")
    return "\n".join(parts)


def _escape_tex(text: str) -> str:
    """Text as LaTeX prints it."""
    commands = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    return "".join(commands.get(c, f"\\{c}" if c in "%_&#${}" else c) for c in text)


def _escape_markdown(text: str) -> str:
    """Text in a cell of a table."""
    return text.replace("|", r"\|")


def _tex_cell(numbers: list[float], worst: bool, best: bool) -> str:
    if not numbers:
        return "--"
    if worst:
        return f"{max(numbers):.2g}"
    mean = f"{statistics.fmean(numbers):.4g}"
    mean = rf"\textbf{{{mean}}}" if best else mean
    return mean + (f" ({statistics.stdev(numbers):.2g})" if len(numbers) > 1 else "")
