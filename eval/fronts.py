"""What methods give up of one measure for another: their fronts over a setting, compared where they are equal in the first measure."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval import figures, tables
from eval.study import Study
from eval.tables import Row, lower_is_better
from rdmm.io import write_atomically, write_table

log = logging.getLogger(__name__)

Front = Sequence[tuple[float, float]]
"""(first measure, second measure) at each value of a family's setting, in the order of the values."""


def at_level(front: Front, level: float) -> float:
    """The least second number where the first is at most ``level``, between neighboring settings linearly; NaN where it is never."""
    found = [y for x, y in front if x <= level]
    for (x0, y0), (x1, y1) in itertools.pairwise(front):
        if min(x0, x1) < level < max(x0, x1):
            found.append(y0 + (level - x0) / (x1 - x0) * (y1 - y0))
    return min(found, default=math.nan)


def compare_fronts(fronts: Mapping[str, Front]) -> tuple[float, dict[str, float]]:
    """The lowest level of the first number that all families reach, and the least second number of each there."""
    level = max(min(x for x, _ in front) for front in fronts.values())
    return level, {family: at_level(front, level) for family, front in fronts.items()}


def compared_rows(rows: Sequence[Row], study: Study) -> list[Row]:
    """A row for each case and family: both measures at the level of the case. Cases that a family failed have none."""
    first, second = study.front
    sign = 1 if lower_is_better(second) else -1
    done = {(r["data"], r["case"], r["method"]): r for r in rows if _has(r, study.front)}
    out = []
    for data, case in dict.fromkeys((r["data"], r["case"]) for r in rows):
        fronts = {
            family: [(done[key][first], sign * done[key][second]) for m in methods if (key := (data, case, m)) in done]
            for family, methods in study.compared.items()
        }
        if all(len(front) == len(study.compared[family]) for family, front in fronts.items()):
            level, found = compare_fronts(fronts)
            out += [{"data": data, "case": case, "method": f, "status": "done", first: level, second: sign * y} for f, y in found.items()]
    return out


def write_fronts(rows: Sequence[Row], study: Study, out: Path) -> None:
    """The tables ``front`` (csv, md) and the figures ``front_<data>``."""
    compared = compared_rows(rows, study)
    if not compared:
        log.warning("study.front: no case has %s and %s by all methods; there is no front", *study.front)
        return
    write_table(out / "front.csv", compared)
    write_atomically(out / "front.md", _markdown(compared, study).encode())
    names = tables.titles(rows)
    for data in dict.fromkeys(r["data"] for r in rows):
        of_data = [r for r in rows if r["data"] == data]
        means = {family: _mean_front(of_data, methods, study.front) for family, methods in study.compared.items()}
        figures.fronts(means, [names[k] for k in study.front], len({r["case"] for r in of_data}), out / f"front_{data}", study.printed)


def _markdown(compared: Sequence[Row], study: Study) -> str:
    """Means of both measures at equal first measure, the ratio to the baseline, and the paired test."""
    first, second = study.front
    tests = {(t["data"], t["method"]): t for t in tables.compare_with_baseline(compared, study.baseline) if t["measure"] == second}
    lines = [f"| data | method | n | {first} | {second} | of {study.baseline} | better in | p |", "|---" * 8 + "|"]
    grouped = tables.group_rows(compared)
    for (data, method), group in grouped.items():
        xs, ys = (tables.values(group, k) for k in study.front)
        ours = grouped.get((data, study.baseline or ""), [])
        pairs = [(a[second], b[second]) for a, b in zip(ours, group, strict=False)]
        mean = f"{statistics.fmean(ys):.4g} ± {statistics.stdev(ys) if len(ys) > 1 else math.nan:.2g}"
        theirs = statistics.fmean(a for a, _ in pairs) if pairs else 0.0
        share = f"{statistics.fmean(ys) / theirs:.2f}" if theirs else ""
        better = sum(b < a if lower_is_better(second) else b > a for a, b in pairs)
        wins = f"{better} of {len(pairs)}" if pairs and method != study.baseline else ""
        p = f"{tests[data, method]['p']:.2g}" if (data, method) in tests else ""
        lines.append(f"| {data} | {method} | {len(group)} | {statistics.fmean(xs):.4g} | {mean} | {share} | {wins} | {p} |")
    note = f"For each case, {second} is that at the lowest {first} that all families reach, between their settings linearly."
    return "\n".join([*lines, "", f"{note} p: Wilcoxon signed-rank, two-sided."]) + "\n"


def _mean_front(rows: Sequence[Row], methods: Sequence[str], measures: Sequence[str]) -> Front:
    """The means at each setting, in the order of the methods, over the cases that all of them have."""
    measured = {m: {r["case"]: r for r in rows if r["method"] == m and _has(r, measures)} for m in methods}
    cases = [case for case in measured[methods[0]] if all(case in own for own in measured.values())]
    means = {m: [statistics.fmean(own[case][k] for case in cases) for k in measures] for m, own in measured.items() if cases}
    return [(x, y) for x, y in means.values()]


def _has(row: Row, measures: Sequence[str]) -> bool:
    """Whether a row has numbers for all measures."""
    return row["status"] == "done" and all(math.isfinite(row.get(k, math.nan)) for k in measures)
