"""CSV files: landmarks and points in world millimeters (RAS+), keypoints in voxels, and tables of results."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmm.io.files import require_file, require_finite_result, write_text
from rdmm.types import InputError, RdmmError, nearest


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


def read_rows(path: str | os.PathLike[str], error: type[RdmmError] = InputError) -> Table:
    """Read a CSV file with a header; UTF-8 with or without a byte-order mark, and any line ends.

    Raises:
        InputError: there is no such file.
        error: it is not UTF-8 text or not CSV.
    """
    reader = csv.DictReader(_open_text(path, error))
    try:
        reader.fieldnames = [c.strip() for c in reader.fieldnames or []]
        numbered = [(reader.line_num, row) for row in reader]
    except csv.Error as problem:
        raise error(f"{path}: line {reader.line_num}: {problem}") from problem
    return Table(list(reader.fieldnames), [row for _, row in numbered], [line for line, _ in numbered])


def _open_text(path: str | os.PathLike[str], error: type[RdmmError] = InputError) -> io.StringIO:
    path = require_file(path)
    try:
        return io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text ({problem.reason} at byte {problem.start})") from problem


def _read_points_table(path: str | os.PathLike[str], wanted: Sequence[str]) -> Table:
    """A table that has the columns ``wanted`` and at least one row."""
    table = read_rows(path)
    table.require(wanted, os.fspath(path))
    if not table.rows:
        raise InputError(f"{os.fspath(path)}: no rows under the header")
    return table


def _parse_numbers(path: str | os.PathLike[str], rows: list[dict[str, str]], columns: Sequence[str], first: int = 2) -> np.ndarray:
    """Finite numbers (rows, columns); ``first``: the number of the first row in error messages."""
    out = np.empty((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            try:
                out[i, j] = float(row[column])
            except (TypeError, ValueError):
                raise InputError(f"{path}: row {i + first}: {column} is {row[column]!r}, not a number") from None
            if not np.isfinite(out[i, j]):
                raise InputError(f"{path}: row {i + first}: {column} is {row[column]}, not finite")
    return out


def read_landmarks(path: str | os.PathLike[str], ndim: int = 3) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read the columns fixed_x.. and moving_x..: fixed and moving points (n, d), and the region of each ('' where the file has none).

    Raises:
        InputError: a column is missing, or a value is not a finite number; the message names the row.
    """
    names = [f"{kind}_{axis}" for kind in ("fixed", "moving") for axis in "xyz"[:ndim]]
    table = _read_points_table(path, names)
    points = _parse_numbers(path, table.rows, names)
    regions = [row["region"] for row in table.rows] if "region" in table.columns else [""] * len(table.rows)
    return points[:, :ndim], points[:, ndim:], regions


def read_keypoints(path: str | os.PathLike[str], ndim: int = 3) -> np.ndarray:
    """Read points (n, d) of one image in Learn2Reg's layout: no header, one row of voxel coordinates per point.

    Raises:
        InputError: a row does not hold d finite numbers (the message names it), or there is no row.
    """
    rows = [row for row in csv.reader(_open_text(path)) if row]
    wrong = next((i for i, row in enumerate(rows) if len(row) != ndim), None)
    if not rows or wrong is not None:
        what = "is empty" if not rows else f"row {wrong + 1} holds {len(rows[wrong])}"  # type: ignore[operator,index]
        raise InputError(
            f"{os.fspath(path)}: {what}; rows of {ndim} voxel coordinates without a header are expected (Learn2Reg's keypoints)"
        )
    columns = "xyz"[:ndim]
    return _parse_numbers(path, [dict(zip(columns, row, strict=True)) for row in rows], columns, first=1)


def read_points(path: str | os.PathLike[str], ndim: int) -> np.ndarray:
    """Read points (n, d) from the columns x, y[, z].

    Raises:
        InputError: as for ``read_landmarks``.
    """
    return _parse_numbers(path, _read_points_table(path, "xyz"[:ndim]).rows, "xyz"[:ndim])


def write_points(path: str | os.PathLike[str], points: np.ndarray) -> None:
    """Write points (n, d) as columns x, y[, z]."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow("xyz"[: points.shape[1]])
    writer.writerows([[f"{x:.6f}" for x in row] for row in require_finite_result(path, points)])
    write_text(path, buffer.getvalue())


def write_table(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], first: Sequence[str] = ()) -> None:
    """Write rows as CSV: the columns ``first``, then all others in the order of their first appearance."""
    columns = list(dict.fromkeys([*first, *(k for row in rows for k in row)]))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
