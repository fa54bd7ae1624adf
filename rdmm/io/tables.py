"""CSV files: landmarks and points in world millimetres (RAS+), keypoints in voxels, and tables of results."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rdmm.io.files import existing, write_atomically
from rdmm.types import InputError, nearest


def _text(path: str | os.PathLike[str]) -> io.StringIO:
    path = existing(path)
    try:
        return io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _rows(path: str | os.PathLike[str], wanted: Sequence[str]) -> tuple[list[dict[str, str]], list[str]]:
    reader = csv.DictReader(_text(path))
    columns = [c.strip() for c in reader.fieldnames or []]
    reader.fieldnames = columns
    missing = [c for c in wanted if c not in columns]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}{nearest(missing[0], columns)}; the header must hold {', '.join(wanted)}")
    rows = list(reader)
    if not rows:
        raise InputError(f"{path}: no rows under the header")
    return rows, columns


def _numbers(path: str | os.PathLike[str], rows: list[dict[str, str]], columns: Sequence[str], first: int = 2) -> np.ndarray:
    """Numbers of columns; ``first``: the file's line of the first row."""
    out = np.empty((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            try:
                out[i, j] = float(row[column])
            except (TypeError, ValueError):
                raise InputError(f"{path}: row {i + first}: {column} is {row[column]!r}, not a number") from None
            if not np.isfinite(out[i, j]):
                raise InputError(f"{path}: row {i + first}: {column} is {row[column]}")
    return out


def read_landmarks(path: str | os.PathLike[str], ndim: int = 3) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Fixed and moving points (n, d), and each one's region ('' where the file has none).

    Raises:
        InputError: a column is missing, or a row (named) holds no number.
    """
    names = [f"{kind}_{axis}" for kind in ("fixed", "moving") for axis in "xyz"[:ndim]]
    rows, columns = _rows(path, names)
    points = _numbers(path, rows, names)
    regions = [row["region"] for row in rows] if "region" in columns else [""] * len(rows)
    return points[:, :ndim], points[:, ndim:], regions


def read_keypoints(path: str | os.PathLike[str], ndim: int = 3) -> np.ndarray:
    """Points (n, d) of one image as Learn2Reg keeps them: no header, a row of voxel coordinates each.

    Raises:
        InputError: a row (named) does not hold d numbers, or there is none.
    """
    rows = [row for row in csv.reader(_text(path)) if row]
    wrong = next((i for i, row in enumerate(rows) if len(row) != ndim), None)
    if not rows or wrong is not None:
        what = "is empty" if not rows else f"row {wrong + 1} holds {len(rows[wrong])}"  # type: ignore[operator,index]
        raise InputError(f"{os.fspath(path)}: {what}; rows of {ndim} voxel coordinates without a header are wanted (Learn2Reg's keypoints)")
    columns = "xyz"[:ndim]
    return _numbers(path, [dict(zip(columns, row, strict=True)) for row in rows], columns, first=1)


def read_points(path: str | os.PathLike[str], ndim: int) -> np.ndarray:
    """Points (n, d) of the columns x, y[, z]."""
    rows, _ = _rows(path, "xyz"[:ndim])
    return _numbers(path, rows, "xyz"[:ndim])


def write_points(path: str | os.PathLike[str], points: np.ndarray) -> None:
    """Points (n, d) as x, y[, z]."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow("xyz"[: points.shape[1]])
    writer.writerows([[f"{x:.6f}" for x in row] for row in points])
    write_atomically(path, buffer.getvalue().encode())


def write_table(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], first: Sequence[str] = ()) -> None:
    """Rows as CSV; the columns ``first``, then every other in the order in which it comes up."""
    columns = list(dict.fromkeys([*first, *(k for row in rows for k in row)]))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())
