"""Figures of a study: box plots over the cases, and pictures of a case by every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from eval.tables import TITLES, Row, group_rows, values
from rdmm.io import write_atomically
from rdmm.report.figures import png

BOXES = ("dice", "region_dice", "tre_mm", "tre_liver_mm", "tre_outside_mm", "sd_log_jacobian_subject", "sd_log_jacobian_outside")


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, png(figure, dpi=90))


def boxes(rows: Sequence[Row], out: Path) -> None:
    """One ``boxes_<data>.png`` for each data set with three cases or more: its measures by method."""
    for data in dict.fromkeys(r["data"] for r in rows):
        of_data = {m: g for (d, m), g in group_rows(rows).items() if d == data}
        shown = [k for k in BOXES if all(len(values(g, k)) > 2 for g in of_data.values())]
        if not shown:
            continue
        figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.6), squeeze=False)
        for panel, key in zip(axes[0], shown, strict=True):
            panel.boxplot([values(g, key) for g in of_data.values()], tick_labels=list(of_data), widths=0.6)
            panel.set_title(TITLES[key])
            panel.grid(axis="y", alpha=0.3)
        figure.suptitle(f"{data}: {max(len(g) for g in of_data.values())} pairs; box: quartiles, line: median")
        figure.tight_layout()
        _save(figure, out / f"boxes_{data}.png")


def case(done: Mapping[str, Any], path: Path) -> None:
    """One picture of a case by every method: name -> registration, all of images or all of shapes."""
    first = next(iter(done.values()))
    _save(first.figure_by_method(done), path)
