"""Pictures with titles side by side, and charts. Pillow draws them in less time than it takes to load matplotlib."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

Colors = Sequence[str]
"""Colors at equidistant numbers, from the lowest to the highest; those between are interpolated."""

GRAY: Colors = ("#000000", "#ffffff")
DIVERGING: Colors = (  # RdBu of ColorBrewer
    *("#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"),
)
SEQUENTIAL: Colors = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")  # viridis
LINES: Colors = ("#1f77b4", "#ff7f0e", "#2ca02c")
ORANGE, INK, PAPER = LINES[1], "#222222", "#ffffff"

PANEL, TITLE, GAP, BAR, LETTERS = 240, 20, 10, 12, 12
"""Pixels: the longer edge of a picture, the line above it, the space between two, the width of a bar of colors, the height of letters."""

COARSE = 3
"""Pixels for each voxel from which on the voxels are shown as squares."""

FINE = 2
"""Lines are drawn so many times larger, and then reduced: smooth edges."""


@dataclass(frozen=True)
class Scale:
    """The colors of numbers.

    Args:
        low, high: the numbers of the first and of the last color; what is beyond has these.
    """

    low: float
    high: float
    colors: Colors = GRAY

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The colors of values (n, m): (n, m, 3), 0 to 255."""
        place = np.clip((values - self.low) / max(self.high - self.low, 1e-12), 0, 1) * 255
        return self._table[np.rint(place).astype(np.uint8)]

    @property
    def _table(self) -> np.ndarray:
        known = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in self.colors])
        where = np.linspace(0, 255, len(known))
        return np.stack([np.rint(np.interp(np.arange(256), where, channel)) for channel in known.T], -1).astype(np.uint8)


@dataclass(frozen=True)
class Panel:
    """A picture of a sheet, with its title above and, with ``bar``, its colors to the right."""

    title: str
    picture: Any
    bar: Scale | None = None


def picture(values: np.ndarray, scale: Scale, aspect: float = 1.0) -> Any:
    """A Pillow image of values (rows, columns), last row on top, whose longer edge has PANEL pixels.

    Args:
        aspect: height of a voxel divided by its width.
    """
    rows, columns = values.shape
    unit = PANEL / max(columns, rows * aspect)
    size = max(1, round(columns * unit)), max(1, round(rows * aspect * unit))
    method = Pillow.Resampling.NEAREST if unit >= COARSE else Pillow.Resampling.BICUBIC
    return Pillow.fromarray(np.ascontiguousarray(scale(values)[::-1])).resize(size, method)


def with_lines(picture: Any, lines: Sequence[np.ndarray], color: str = ORANGE, width: int = 1) -> Any:
    """A copy of a picture with lines (n, 2), in its pixels, of ``width`` / FINE pixels; what is not finite is left out."""
    large = picture.resize((picture.width * FINE, picture.height * FINE), Pillow.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    for line in lines:
        there = line[np.isfinite(line).all(1)]
        if len(there) > 1:
            draw.line((there * FINE).ravel().tolist(), fill=color, width=width, joint="curve" if width > FINE else None)
    return large.reduce(FINE)


@cache
def _font() -> Any:
    return ImageFont.load_default(LETTERS)


def _write(draw: Any, place: tuple[float, float], text: str, anchor: str = "lm", color: str = INK) -> None:
    draw.text(place, text, fill=color, font=_font(), anchor=anchor)


def sheet(rows: Sequence[Sequence[Panel]]) -> Any:
    """A Pillow image of rows of panels."""
    widths = [max(_width(row[k]) for row in rows) + GAP for k in range(len(rows[0]))]
    heights = [TITLE + GAP + max(panel.picture.height for panel in row) for row in rows]
    whole = Pillow.new("RGB", (sum(widths) + GAP, sum(heights)), PAPER)
    draw = ImageDraw.Draw(whole)
    for row, top in zip(rows, accumulate(heights, initial=0), strict=False):
        for panel, left in zip(row, accumulate(widths, initial=GAP), strict=False):
            _write(draw, (left, top + TITLE / 2), panel.title)
            whole.paste(panel.picture, (left, top + TITLE))
            if panel.bar is not None:
                _draw_bar(whole, draw, panel.bar, left + panel.picture.width + GAP, top + TITLE, panel.picture.height)
    return whole


def _width(panel: Panel) -> int:
    return int(max(panel.picture.width + (0 if panel.bar is None else 6 * GAP + BAR), _font().getlength(panel.title)))


def _draw_bar(whole: Any, draw: Any, scale: Scale, left: int, top: int, height: int) -> None:
    ramp = np.linspace(scale.high, scale.low, height)[:, None].repeat(BAR, 1)
    whole.paste(Pillow.fromarray(scale(ramp)), (left, top))
    for share in (0, 0.5, 1):
        value = scale.low + share * (scale.high - scale.low)
        _write(draw, (left + BAR + 4, top + 6 + (1 - share) * (height - 12)), f"{value:.3g}")


def chart(series: Mapping[str, Sequence[float]], across: str, *, logarithmic: bool) -> Any:
    """A Pillow image of numbers by their position, each series in its color.

    Args:
        across: what the positions count.
        logarithmic: numbers of 0 or less are left out.
    """
    left, top, width, height = 70, GAP, 2 * PANEL, PANEL - 50
    of_chart = [np.where(np.asarray(y) > 0, y, np.nan) if logarithmic else np.asarray(y, float) for y in series.values()]
    shown = np.concatenate([y[np.isfinite(y)] for y in of_chart])
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    last = max(1, *(len(y) - 1 for y in of_chart))

    def height_of(value: Any) -> Any:
        a, b, v = (np.log(x) if logarithmic else x for x in (low, high, value))
        return top + height - (v - a) / max(b - a, 1e-12) * (height - 2 * GAP) - GAP

    whole = Pillow.new("RGB", (left + width + 2 * PANEL // 3, top + height + 50), PAPER)
    for y, color in zip(of_chart, LINES, strict=False):
        places = left + GAP + np.arange(len(y)) * (width - 2 * GAP) / last
        whole = with_lines(whole, [np.stack([places, height_of(y)], 1)], color, width=3)
    draw = ImageDraw.Draw(whole)
    draw.rectangle((left, top, left + width, top + height), outline=INK)
    for value in _ticks(low, high, logarithmic):
        draw.line((left - 4, height_of(value), left, height_of(value)), fill=INK)
        _write(draw, (left - 8, height_of(value)), f"{value:.3g}", "rm")
    for step in _ticks(0, last, False):
        place = left + GAP + step * (width - 2 * GAP) / last
        draw.line((place, top + height, place, top + height + 4), fill=INK)
        _write(draw, (place, top + height + 14), f"{step:g}", "mm")
    _write(draw, (left + width / 2, top + height + 36), across, "mm")
    for k, (name, color) in enumerate(zip(series, LINES, strict=False)):
        _write(draw, (left + width + 2 * GAP, top + GAP + 18 * k), name, color=color)
    return whole


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """A few round numbers from ``low`` to ``high``."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        choices = [[d * 10.0**k for k in decades for d in digits] for digits in ((1,), (1, 3), (1, 2, 5))]
    else:
        unit = 10.0 ** math.floor(math.log10(max(high - low, 1e-12)))
        steps = [unit * share for share in (5, 2, 1, 0.5)]
        choices = [[k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)] for step in steps]
    found = [[value for value in choice if low <= value <= high] for choice in choices]
    return next((ticks for ticks in found if len(ticks) >= 3), found[-1])


def gray_picture(values: np.ndarray) -> Any:
    """A Pillow image of values (rows, columns) in [0, 1], first row on top."""
    return Pillow.fromarray((255 * np.clip(values, 0, 1)).astype(np.uint8))


def base64_picture(picture: Any, kind: str) -> str:
    """Encode a Pillow image as base64; ``kind`` is PNG or JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **({"compress_level": 3} if kind == "PNG" else {}))
    return base64.b64encode(buffer.getvalue()).decode()
