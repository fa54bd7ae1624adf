"""Tables of text (CSV, also with ; or tabs): landmarks in world millimeters (RAS+), keypoints in voxels, and tables of results."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmm.io.files import require_file, write_text
from rdmm.io.in_memory import landmark_arrays
from rdmm.runtime.resources import require_memory
from rdmm.spatial.grid import Grid
from rdmm.spatial.pair import format_boxes
from rdmm.types import LENGTHS, InputError, RdmmError, nearest

MEMORY_PER_BYTE = 70
"""Bytes of memory that a byte of a table takes at most. Measured: 65 for rows of three digits, the shortest."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take for the beginning of a formula."""


@dataclass(frozen=True)
class Table:
    """A CSV file: its columns, its rows by column, and the line of the file on which each row ends."""

    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]

    def require(self, wanted: Sequence[str], where: str, error: type[RdmmError] = InputError) -> None:
        """Raise ``error`` if one of the columns ``wanted`` is missing; the message begins with ``where``."""
        missing = [c for c in wanted if c not in self.columns]
        if missing:
            raise error(f"{where}: no column {missing[0]!r}{nearest(missing[0], self.columns)}; the header must hold {', '.join(wanted)}")


def read_rows(path: str | os.PathLike[str], error: type[RdmmError] = InputError, header: Sequence[str] = ()) -> Table:
    """Read a table with a header, separated by commas, semicolons, tabs or spaces; UTF-8 with or without a byte-order mark, and any line
    ends. Empty lines and comments (#) are skipped.

    Args:
        header: names of columns, for the message about a file without a header.

    Raises:
        InputError: there is no such file.
        error: it is not UTF-8 text or not CSV, has no header, a column occurs twice, or a row has more or fewer fields than the header.
    """
    lines = [(number, row) for number, row in read_fields(path, error) if not row[0].lstrip().startswith("#")]
    number, columns = lines[0] if lines else (1, [])
    columns = [c.strip() for c in columns]
    if columns and are_numbers(columns):
        names = f" {','.join(header)}" if header else " with the names of its columns"
        raise error(f"{path}: line {number}: only numbers, so the file has no header; add the line{names} above it")
    if twice := next((c for k, c in enumerate(columns) if c in columns[:k]), None):
        raise error(f"{path}: line {number}: the column {twice!r} occurs twice; remove or rename one")
    if columns.count("") > 1:
        raise error(f"{path}: line {number}: {columns.count('')} columns have no name; name or remove them")
    for number, row in lines[1:]:
        if len(row) != len(columns):
            fault = "more" if len(row) > len(columns) else "fewer"
            raise error(
                f"{path}: line {number}: {fault} fields than columns ({len(row)}, {len(columns)}); put texts with commas into quotes"
            )
    return Table(columns, [dict(zip(columns, row, strict=True)) for _, row in lines[1:]], [number for number, _ in lines[1:]])


def read_fields(path: str | os.PathLike[str], error: type[RdmmError] = InputError) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, each with the line of the file on which it ends. The first row that is no comment tells
    whether commas, semicolons, tabs or spaces separate the fields.

    Raises:
        InputError: there is no such file.
        ResourceError: it is too large for the free memory.
        error: it is not UTF-8 text or not CSV.
    """
    path = require_file(path)
    size = path.stat().st_size
    require_memory(MEMORY_PER_BYTE * size, f"{path}: a table of {size} bytes", "split it")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text ({problem.reason} at byte {problem.start}); save it as UTF-8") from problem
    if "\0" in text:
        raise error(f"{path}: line {text.count(chr(10), 0, text.index(chr(0))) + 1}: it holds a NUL character; it is no text")
    separator = _delimiter(text)
    if separator == " ":
        text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator, skipinitialspace=separator == " ")
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, row
    except csv.Error as problem:
        raise error(f"{path}: line {reader.line_num}: {problem}") from problem


def _delimiter(text: str) -> str:
    """The comma, the semicolon or the tab: what occurs most, outside quotes, in the first line that is no comment; else the space."""
    line = next((x for x in io.StringIO(text, newline=None) if x.strip() and not x.lstrip().startswith("#")), "")
    bare = re.sub(r'"[^"]*"?', "", line)
    best = max(",;\t", key=bare.count)
    return best if best in bare or " " not in bare.strip() else " "


def are_numbers(texts: Iterable[str]) -> bool:
    """Whether each text is a number."""
    try:
        for text in texts:
            float(text)
    except ValueError:
        return False
    return True


def require_rows(table: Table, path: str | os.PathLike[str], wanted: Sequence[str]) -> None:
    """Raise InputError if a table lacks one of the columns ``wanted``, or has no rows."""
    table.require(wanted, os.fspath(path))
    if not table.rows:
        raise InputError(f"{os.fspath(path)}: no rows under the header")


def parse_numbers(path: str | os.PathLike[str], table: Table, columns: Sequence[str]) -> np.ndarray:
    """Coordinates (rows, columns), finite and within LENGTHS.

    Raises:
        InputError: a cell does not hold one; the message names the row by its line in the file.
    """
    out = np.empty((len(table.rows), len(columns)))
    for i, row in enumerate(table.rows):
        for j, column in enumerate(columns):
            text = row[column].strip()
            try:
                out[i, j] = float(text if text.isascii() and "_" not in text else "")
            except ValueError:
                cure = "; write it with a point" if re.fullmatch(r"[-+]?\d+,\d+", text, re.ASCII) else ""
                raise InputError(f"{path}: row {table.lines[i]}: {column} is {text[:40]!r}, not a number{cure}") from None
            if not abs(out[i, j]) <= LENGTHS[1]:
                what = f"more than {LENGTHS[1]:g} mm" if np.isfinite(out[i, j]) else "not finite"
                raise InputError(f"{path}: row {table.lines[i]}: {column} is {text[:40]}, {what}")
    return out


def read_landmarks(
    given: str | os.PathLike[str] | Sequence[Any], ndim: int = 3, grids: Sequence[Grid] | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read the columns fixed_x.. and moving_x..: fixed and moving points (n, d), and the region of each ('' where there is none).

    Args:
        given: a CSV; or, in Python, two arrays: fixed and moving points (n, d).
        grids: of the fixed and the moving image, or around shapes. A point may lie outside by a tenth of the longest edge.

    Raises:
        InputError: a column is missing, a value is not a finite number, or a point is far outside them; the message names the row.
    """
    if isinstance(given, str | os.PathLike):
        fixed, moving, regions, lines = _read_landmark_rows(given, ndim)
    else:
        fixed, moving = landmark_arrays(given, ndim)
        regions, lines = [""] * len(fixed), range(1, len(fixed) + 1)
    name = os.fspath(given) if isinstance(given, str | os.PathLike) else "landmarks"
    for kind, side, grid in zip(("fixed", "moving"), (fixed, moving), grids or (), strict=False):
        _require_inside(name, lines, side, grid, kind)
    return fixed, moving, regions


def _read_landmark_rows(path: str | os.PathLike[str], ndim: int) -> tuple[np.ndarray, np.ndarray, list[str], Sequence[int]]:
    """Fixed and moving points of a CSV, their regions, and the number of each row."""
    names = [f"{kind}_{axis}" for kind in ("fixed", "moving") for axis in "xyz"[:ndim]]
    table = read_rows(path, header=names)
    require_rows(table, path, names)
    points = parse_numbers(path, table, names)
    depth = [f"{kind}_z" for kind in ("fixed", "moving") if ndim == 2 and f"{kind}_z" in table.columns]
    if depth and np.ptp(parse_numbers(path, table, depth)) > 0:
        raise InputError(f"{os.fspath(path)}: the landmarks are 3D (column {depth[0]!r} varies), but the registration is 2D")
    regions = [row["region"] for row in table.rows] if "region" in table.columns else [""] * len(table.rows)
    return points[:, :ndim], points[:, ndim:], regions, table.lines


def _require_inside(path: str, lines: Sequence[int], points: np.ndarray, grid: Grid, kind: str) -> None:
    """Raise InputError if a point lies outside the grid by more than a tenth of its longest edge."""
    low, high = grid.corners()
    margin = 0.1 * grid.length
    outside = ((points < low - margin) | (points > high + margin)).any(1)
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError(
            f"{path}: row {lines[row]}: the {kind} point {points[row].round(1).tolist()} is far outside the {kind} input "
            f"{format_boxes([grid])}; are the landmarks in world millimeters (RAS+)?"
        )


def read_keypoints(path: str | os.PathLike[str], ndim: int = 3, shape: Sequence[int] | None = None) -> np.ndarray:
    """Read points (n, d) of one image in Learn2Reg's layout: no header, one row of voxel coordinates per point.

    Args:
        shape: of the image, in voxels.

    Raises:
        InputError: a row does not hold d finite numbers, or a point outside the image (the message names it), or there is no row.
    """
    lines = list(read_fields(path))
    wrong = next((f"row {line} holds {len(row)}" for line, row in lines if len(row) != ndim), None if lines else "is empty")
    if wrong is not None:
        raise InputError(
            f"{os.fspath(path)}: {wrong}; rows of {ndim} voxel coordinates without a header are expected (Learn2Reg's keypoints)"
        )
    axes = list("xyz"[:ndim])
    table = Table(axes, [dict(zip(axes, row, strict=True)) for _, row in lines], [line for line, _ in lines])
    points = parse_numbers(path, table, axes)
    outside = np.zeros(len(points), bool) if shape is None else ((points < -1) | (points > np.asarray(shape))).any(1)
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError(f"{os.fspath(path)}: row {table.lines[row]}: {points[row].tolist()} is outside the image's {shape} voxels")
    return points


def write_table(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], first: Sequence[str] = ()) -> None:
    """Write rows as CSV: the columns ``first``, then all others in the order of their first appearance.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    columns = list(dict.fromkeys([*first, *(k for row in rows for k in row)]))
    write_fields(path, [[_as_text(c) for c in columns], *([_as_text(row.get(c, "")) for c in columns] for row in rows)])


def write_fields(path: str | os.PathLike[str], rows: Iterable[Sequence[Any]], separator: str = ",") -> None:
    """Write rows of fields as CSV, as they are."""
    write_text(path, "".join(format_row(row, separator) for row in rows))


def format_row(row: Sequence[Any], separator: str = ",") -> str:
    """A line of CSV. Python's writer puts only the characters of its own line ends into quotes, here both \\r and \\n."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=separator, lineterminator="\r\n").writerow(row)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _as_text(value: Any) -> Any:
    """``value``; a text that begins like a formula, and is no number, with an apostrophe in front."""
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS):
        return value
    return value if are_numbers([value]) else f"'{value}"
