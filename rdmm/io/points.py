"""Points in world millimeters: tables, the markups of Slicer, and the vertices of meshes and streamlines."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rdmm.io import meshes
from rdmm.io.files import require_ending, write_text
from rdmm.io.markups import read_fcsv, read_markups, render_fcsv, render_markups
from rdmm.io.tables import Table, are_numbers, parse_numbers, read_rows, require_rows, write_fields
from rdmm.types import ConfigError, InputError, OutputError, option, repr_with_shapes

log = logging.getLogger(__name__)

TABLE_ENDINGS = (".csv", ".tsv", ".txt")
MARKUP_ENDINGS = (".fcsv", ".mrk.json")
POINT_ENDINGS = (*TABLE_ENDINGS, *MARKUP_ENDINGS, *meshes.MESH_ENDINGS)
"""Endings of files of points that are read and written."""

AXES = {"xyz": None, "ras": False, "lps": True}
"""Names of the columns of coordinates, and whether they say that the points are LPS: Slicer's tables have r, a, s or l, p, s."""


@dataclass(frozen=True, eq=False)
class PointList:
    """Points (n, d) in world millimeters (RAS+), with the file that they come from.

    Args:
        table: its columns ``axes`` are written anew, all others as they are; no columns where the points are those of a mesh.
        lps: the points are written in LPS+ where the format does not say.
        axes: names of the columns of coordinates.
        shape: the mesh whose vertices they are.
        markups: content of the .mrk.json file that they come from.
        is_lps: whether each row of the file is in LPS+; one value: all rows.
    """

    points: np.ndarray
    table: Table
    lps: bool = False
    axes: Sequence[str] = ("x", "y", "z")
    shape: meshes.PolyData | None = None
    markups: dict[str, Any] | None = None
    is_lps: np.ndarray = field(default_factory=lambda: np.zeros(1, bool))

    __repr__ = repr_with_shapes


def read_points(path: str | os.PathLike[str], ndim: int, *, lps: bool = False) -> PointList:
    """Read the columns x, y[, z] of a table, the points of Slicer's markups, or the vertices of a mesh or of streamlines, as RAS+.

    Args:
        ndim: dimension of the transform that they go through.
        lps: the file is in LPS+, as ANTs and ITK write points, and is written so again.

    Raises:
        ConfigError: ``lps`` together with a file that declares its frame.
        InputError: a column is missing, a value is not a finite number, or the points have another dimension than ``ndim``.
    """
    path = Path(path)
    if meshes.is_mesh(path):
        return _vertices(path, ndim, meshes.read_polydata(path, lps=lps), lps)
    kind, content = path.suffix.lower(), None
    if kind in (".fcsv", ".json"):
        if lps:
            raise ConfigError(f"{path}: Slicer's markups declare their frame; leave out {option('lps')}")
        if kind == ".fcsv":
            table, is_lps = read_fcsv(path)
        else:
            table, is_lps, content = read_markups(path)
        names = "xyz"
    else:
        table = read_rows(path, header="xyz"[:ndim])
        names, is_lps = _frame_of(path, table, lps)
    own = {c.lower(): c for c in reversed(table.columns)}
    if not set(names[:2]) <= set(own):
        table.require(list(names[:ndim]), os.fspath(path))
    is_flat = ndim == 2 and names[2] in own and not parse_numbers(path, table, [own[names[2]]]).any()  # ANTs and Slicer write z = 0 in 2D
    if (names[2] in own) != (ndim == 3) and not is_flat:
        have, cure = (3, "remove the column") if names[2] in own else (2, "add it")
        has = "a" if have == 3 else "no"
        raise InputError(
            f"{path}: the points are {have}D ({has} column {names[2]!r}) but the transform is {ndim}D; {cure}, or give another"
        )
    axes = [own.get(name, name) for name in names[:ndim]]
    require_rows(table, path, axes)
    points = _flipped(parse_numbers(path, table, axes), is_lps)
    return PointList(points, table, lps or names == "lps", axes, markups=content, is_lps=is_lps)


def _frame_of(path: Path, table: Table, lps: bool) -> tuple[str, np.ndarray]:
    """The names of a table's columns of coordinates, and whether the points are LPS (1 value)."""
    columns = [c.lower() for c in table.columns]
    names = next((names for names in AXES if set(names) <= set(columns)), "xyz")
    declared = AXES[names]
    if declared is not None and lps:
        raise ConfigError(f"{path}: its columns {', '.join(names)} declare the frame; leave out {option('lps')}")
    if columns[:4] == ["x", "y", "z", "t"] and not lps:
        text = "%s: x,y,z,t are the columns of ANTs, whose points are LPS; they are read as RAS+: use %s if ANTs wrote them"
        log.warning(text, path, option("lps"))
    return names, np.full(1, lps if declared is None else declared)


def _vertices(path: Path, ndim: int, shape: meshes.PolyData, lps: bool) -> PointList:
    """The vertices of a mesh; for a transform in 2D, z must be 0."""
    if ndim == 2 and shape.points[:, 2].any():
        raise InputError(f"{path}: the points are 3D (z is not 0) but the transform is 2D; give a 3D one")
    return PointList(shape.points[:, :ndim], Table([], [], []), lps, shape=shape)


def write_points(path: str | os.PathLike[str], points: PointList) -> None:
    """Write points in the format of the file's name: as a table with nine significant digits and all other columns of its table, as
    markups of Slicer, or as a mesh. What the format cannot hold is named in a warning.

    Raises:
        ConfigError: the name has an ending that is not written.
        OutputError: the file cannot be written, or a point is not finite; the message names its row in the list that was read.
    """
    path = require_ending(path, POINT_ENDINGS, "a list of points or a mesh")
    finite = np.isfinite(points.points).all(1)
    if not finite.all():
        k = int(np.argmin(finite))
        place = f"row {points.table.lines[k]}" if points.shape is None else f"vertex {k}"
        raise OutputError(
            f"{path}: not written: the point of {place} goes to {points.points[k].tolist()} (NaN or Inf); check the transform"
        )
    if meshes.is_mesh(path):
        meshes.write_polydata(path, _as_shape(path, points))
        return
    points = _as_list(path, points)
    if path.name.lower().endswith(TABLE_ENDINGS):
        written = _flipped(points.points, np.full(1, points.lps)) + 0.0  # no -0
        rows = [row | dict(zip(points.axes, _digits(xs), strict=True)) for row, xs in zip(points.table.rows, written, strict=True)]
        columns = points.table.columns
        separator = "," if path.suffix.lower() == ".csv" else "\t"
        write_fields(path, [columns, *([row[c] for c in columns] for row in rows)], separator)
        return
    in_space = np.pad(points.points, ((0, 0), (0, 3 - points.points.shape[1])))
    if path.suffix.lower() == ".fcsv":
        write_text(path, render_fcsv([_digits(p) for p in in_space * [-1, -1, 1] + 0.0], points.table))
    else:
        write_text(path, render_markups(in_space, points.table, points.markups, points.is_lps))


def _digits(numbers: np.ndarray) -> list[str]:
    return [f"{x:.9g}" for x in numbers]


def _flipped(points: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Points (n, d) with x and y negated, from LPS to RAS or back, where ``where`` (n or 1) is true."""
    signs = np.array([-1.0, -1.0, 1.0])[: points.shape[1]]
    return np.where(where[:, None], points * signs, points)


def _as_shape(path: Path, points: PointList) -> meshes.PolyData:
    """The mesh with its vertices moved; of a list, points with its columns of numbers as data."""
    in_space = np.pad(points.points, ((0, 0), (0, 3 - points.points.shape[1])))
    if points.shape is not None:
        if vectors := [name for name, x in points.shape.point_data.items() if x.ndim == 2 and x.dtype.kind == "f" and name != "color"]:
            log.warning("%s: the vectors of the points keep their values, they are not turned: %s", path, ", ".join(vectors))
        return replace(points.shape, points=in_space)
    others = [c for c in points.table.columns if c not in points.axes]
    columns = {c: [row[c] for row in points.table.rows] for c in others}
    data = {c: np.array(texts, np.float64) for c, texts in columns.items() if are_numbers(texts)}
    if lost := [c for c in others if c not in data]:
        log.warning("%s: a mesh holds no texts; columns left out: %s", path, ", ".join(lost))
    return meshes.PolyData(in_space, [meshes.as_vertices(len(in_space))], data, frame="LPS" if points.lps else "")


def _as_list(path: Path, points: PointList) -> PointList:
    """A list with a table: of a mesh, its vertices with their data of one number each."""
    if points.shape is None:
        return points
    axes = list("xyz"[: points.points.shape[1]])
    data = {name: x for name, x in points.shape.point_data.items() if x.ndim == 1 and name not in axes}
    lost = [name for name in points.shape.point_data if name not in data]
    if lost:
        log.warning("%s: a list of points does not hold %s", path, ", ".join(lost))
    if points.shape.cell_count:
        log.info("%s: the points alone, without the cells of the mesh", path)
    rows = [{**dict.fromkeys(axes, ""), **{name: f"{x[k]:.9g}" for name, x in data.items()}} for k in range(len(points.points))]
    table = Table([*axes, *data], rows, list(range(len(rows))))
    return PointList(points.points, table, points.lps, axes)
