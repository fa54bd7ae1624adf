"""Figures of a study for print: box plots over the cases, and pictures of a case by every method."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib.pyplot as plt
import numpy as np

from eval.tables import Row, compare_with_baseline, group_rows, is_error, titles, values
from rdmm.io import write_atomically
from rdmm.report.figures import encoded
from rdmm.types import ConfigError, nearest, require_whole

BOXES = (
    "dice",
    "region_dice",
    "tre_mm",
    "tre_liver_mm",
    "tre_outside_mm",
    "distance_after_mm",
    "sd_log_jacobian_subject",
    "sd_log_jacobian_outside",
)
"""Measures with a box plot."""

ACRONYMS = ("svf", "lddmm", "rdmm", "ssd", "ncc", "lncc", "nmi", "ot", "rkhs")
"""Parts of the names of methods that a reader knows in capitals."""

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""Signs of significance, for p below a limit."""

COLORS = tuple(f"C{k}" for k in range(10))
"""Matplotlib's colors, for the points of one method after the other."""

Form = Literal["png", "pdf"]


@dataclass(frozen=True)
class Print:
    """How figures are printed.

    Args:
        formats: png, pdf.
        dpi: dots per inch.
        names: what readers call a method, by its name in the study. Others: ``svf`` is SVF, ``ot_reach`` is OT reach.

    Raises:
        ConfigError: an unknown format, or a dpi that cannot be.
    """

    formats: Sequence[Form] = get_args(Form)
    dpi: int = 300
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_whole("study.style.dpi", self.dpi, 20, 2400)
        if isinstance(self.formats, str) or not set(self.formats) <= set(get_args(Form)):
            raise ConfigError(f"study.style.formats must be a list of {', '.join(get_args(Form))}; got {self.formats}")

    @classmethod
    def of(cls, style: Mapping[str, Any]) -> Print:
        """The style of a study's settings. Raises ConfigError for an unknown key."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(style) - set(known)):
            raise ConfigError(f"study.style: no key {unknown[0]!r}{nearest(unknown[0], known)}; there are {', '.join(known)}")
        return cls(**style)

    def name(self, method: str) -> str:
        """What a reader calls a method."""
        words = [w.upper() if w in ACRONYMS else w for w in method.split("_")]
        return self.names.get(method, " ".join(words))

    def save(self, figure: Any, stem: Path) -> None:
        """Write a figure as ``stem`` with the ending of each format, and close it."""
        for form in self.formats:
            write_atomically(stem.with_name(f"{stem.name}.{form}"), encoded(figure, form, self.dpi))
        plt.close(figure)


def boxes(rows: Sequence[Row], out: Path, baseline: str | None = None, style: Print | None = None) -> None:
    """One ``boxes_<data>`` for each data set with three cases or more: its measures by method, with a point for each case.

    Stars tell where a method differs from the baseline by the test of the tables.
    """
    style = style or Print()
    tests = {(t["data"], t["measure"], t["method"]): t["p_holm"] for t in compare_with_baseline(rows, baseline)}
    named = titles(rows)
    for data in dict.fromkeys(r["data"] for r in rows):
        of_data = {m: g for (d, m), g in group_rows(rows).items() if d == data}
        shown = [k for k in [*BOXES, *filter(is_error, named)] if all(len(values(g, k)) > 2 for g in of_data.values())]
        if not shown:
            continue
        figure, axes = plt.subplots(1, len(shown), figsize=((0.9 + 0.45 * len(of_data)) * len(shown), 3.2), squeeze=False)
        for panel, key in zip(axes[0], shown, strict=True):
            _draw_boxes(panel, {style.name(m): values(g, key) for m, g in of_data.items()})
            panel.set_title(with_unit(named[key]), fontsize=9)
            for place, method in enumerate(of_data, 1):
                if sign := significance(tests.get((data, key, method), 1.0)):
                    panel.annotate(sign, (place, 0.99), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8)
        count = max(len(g) for g in of_data.values())
        note = f"; stars: differs from {style.name(baseline)}, p < .05, .01, .001 (signed ranks, Holm)" if baseline and tests else ""
        figure.supxlabel(f"{count} pairs; box: quartiles, line: median, points: pairs{note}", fontsize=7)
        figure.tight_layout()
        style.save(figure, out / f"boxes_{data}")


def _draw_boxes(panel: Any, numbers: Mapping[str, Sequence[float]]) -> None:
    """A box and points for each method. The points are spread evenly across, in the order of the cases."""
    panel.boxplot(list(numbers.values()), tick_labels=list(numbers), widths=0.6, showfliers=False, medianprops={"color": "black"})
    for place, (points, color) in enumerate(zip(numbers.values(), itertools.cycle(COLORS), strict=False), 1):
        panel.scatter(place + np.linspace(-0.2, 0.2, len(points)), points, s=6, color=color, alpha=0.8, zorder=3, linewidths=0)
    low, high = panel.get_ylim()
    panel.set_ylim(low, high + 0.08 * (high - low))  # room for stars
    panel.tick_params(axis="x", rotation=45, labelsize=8)
    panel.tick_params(axis="y", labelsize=8)
    for label in panel.get_xticklabels():
        label.set_ha("right")
    panel.grid(axis="y", alpha=0.3)


def significance(p: float) -> str:
    """Stars for a p value; an empty text from .05 on."""
    return next((stars for limit, stars in STARS if p < limit), "")


def with_unit(title: str) -> str:
    """A measure's title with its unit in parentheses: TRE (mm)."""
    words = title.split()
    return f"{' '.join(w for w in words if w != 'mm')} (mm)" if "mm" in words else title


def case(done: Mapping[str, Any], stem: Path, style: Print | None = None) -> None:
    """One picture of a case by every method: name -> registration, all of images or all of shapes."""
    style = style or Print()
    first = next(iter(done.values()))
    style.save(first.figure_by_method({style.name(m): r for m, r in done.items()}), stem)


def errors(done: Mapping[str, Any], stem: Path, style: Print | None = None) -> None:
    """One picture of a case with a true map: the true displacement, and the errors of every method in the same colors."""
    from rdmm.report.error_figures import errors_by_method

    style = style or Print()
    first = next(iter(done.values()))
    truth = first.inputs.truth
    found = {style.name(method): r.map_error for method, r in done.items()}
    style.save(errors_by_method(first.pair.fixed, truth.displacement, truth.regions, found), stem)


def fronts(means: Mapping[str, Sequence[tuple[float, float]]], names: Sequence[str], cases: int, stem: Path, style: Print) -> None:
    """One picture of two measures: a line for each family of methods, through the means over the cases at each of its settings."""
    figure, panel = plt.subplots(figsize=(4.2, 3.4))
    for family, points in means.items():
        panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=style.name(family))
    panel.set_xlabel(with_unit(names[0]))
    panel.set_ylabel(with_unit(names[1]))
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.supxlabel(f"means over {cases} cases; along a line, one setting varies", fontsize=7)
    figure.tight_layout()
    style.save(figure, stem)
