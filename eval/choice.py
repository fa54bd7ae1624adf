"""Settings of a method chosen on other cases than the one they are judged on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from eval.tables import Row, group_rows, lower_is_better, values


def leave_one_out(rows: Sequence[Row], families: Mapping[str, Sequence[str]], measure: str) -> list[Row]:
    """A row for each case and family: that of the family's method whose mean of ``measure`` over all other cases is best.

    Only methods that have the measure in all other cases can be chosen; where none has, the case has no row.

    Args:
        rows: of the families' methods.
        families: methods that differ in their settings alone, by the name that they have together.
        measure: a measure that is tested.
    """
    out = []
    sign = 1 if lower_is_better(measure) else -1
    for data in dict.fromkeys(r["data"] for r in rows):
        grouped = {m: g for (d, m), g in group_rows(rows).items() if d == data}
        for family, methods in families.items():
            for case in dict.fromkeys(r["case"] for m in methods for r in grouped.get(m, [])):
                others = {m: [r for r in grouped[m] if r["case"] != case] for m in methods if m in grouped}
                means = {m: statistics.fmean(values(g, measure)) for m, g in others.items() if g and len(values(g, measure)) == len(g)}
                if means:
                    chosen = min(means, key=lambda m, means=means: sign * means[m])  # type: ignore[misc]
                    out += [{**r, "method": family, "chosen": chosen} for r in grouped[chosen] if r["case"] == case]
    return out
