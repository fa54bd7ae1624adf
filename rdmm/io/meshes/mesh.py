"""What a mesh file holds, and cells of any number of corners as segments and triangles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from rdmm.types import InputError, counted, nearest, repr_with_shapes

Kind = Literal["VERTICES", "LINES", "POLYGONS", "TRIANGLE_STRIPS"]

FEWEST_CORNERS: dict[Kind, int] = {"VERTICES": 1, "LINES": 2, "POLYGONS": 2, "TRIANGLE_STRIPS": 3}
"""The smallest cell of each kind. A polygon of two corners is a segment."""


FLIP = np.array([-1.0, -1.0, 1.0])
"""From RAS+ to LPS+ and back."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """The contents of a mesh file: vertices (n, 3), segments (m, 2) or triangles (m, 3) or None, weights (n,) or None, features (n, e) or
    None."""

    points: np.ndarray
    cells: np.ndarray | None = None
    weights: np.ndarray | None = None
    features: np.ndarray | None = None

    __repr__ = repr_with_shapes


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of one kind as a file lists them: cell k has the vertices ``corners[offsets[k] : offsets[k + 1]]``."""

    kind: Kind
    offsets: np.ndarray
    corners: np.ndarray

    @property
    def count(self) -> int:
        """The number of cells."""
        return len(self.offsets) - 1

    def rows(self) -> list[np.ndarray]:
        """The corners of each cell."""
        return np.split(self.corners, self.offsets[1:-1])

    def check(self, points: int, shortest: int | None = None) -> None:
        """Raise InputError if a cell has fewer than ``shortest`` corners (None: FEWEST_CORNERS), or vertices that are not among the
        ``points``."""
        sizes = np.diff(self.offsets)
        if len(sizes) and sizes.min() < (fewest := shortest or FEWEST_CORNERS[self.kind]):
            worst = int(np.argmax(sizes < fewest))
            raise InputError(f"cell {worst} of {self.kind} has {sizes[worst]} corners; at least {fewest} are needed")
        if len(self.corners) and (self.corners.min() < 0 or self.corners.max() >= points):
            raise InputError(f"{self.kind} name vertices {self.corners.min()} to {self.corners.max()}; there are {points}, numbered from 0")

    def simplices(self) -> list[np.ndarray]:
        """Segments (m, 2) and triangles (m, 3), each in the order of the file; [] for vertices."""
        if self.kind == "VERTICES":
            return []
        sizes = np.diff(self.offsets)
        groups: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        by_size = np.argsort(sizes, kind="stable")
        for cells in np.split(by_size, np.flatnonzero(np.diff(sizes[by_size])) + 1) if len(sizes) else []:
            pattern = _pattern(self.kind, int(sizes[cells[0]]))
            found = self.corners[self.offsets[cells, None, None] + pattern]
            groups.setdefault(pattern.shape[1], []).append((np.repeat(cells, len(pattern)), found.reshape(-1, pattern.shape[1])))
        out = []
        for group in groups.values():
            order = np.argsort(np.concatenate([cells for cells, _ in group]), kind="stable")
            out.append(np.concatenate([found for _, found in group])[order])
        return out


@dataclass(frozen=True, eq=False)
class PolyData:
    """All that a mesh file holds, as in VTK's class of this name.

    Args:
        points: vertices (n, 3), RAS+.
        cells: lists of cells; their order is VERTICES, LINES, POLYGONS, TRIANGLE_STRIPS.
        point_data: columns (n,) or (n, k) by name.
        cell_data: columns (m,) or (m, k) by name, of the m cells of all lists in their order.
        frame: LPS or RAS, where the file declares one; "" elsewhere.
        left_out: what was not read, since it describes the shape at its old place or is not known.
        native: what only the file's own format holds, for the writer of the same format.
    """

    points: np.ndarray
    cells: Sequence[Cells] = ()
    point_data: Mapping[str, np.ndarray] = field(default_factory=dict)
    cell_data: Mapping[str, np.ndarray] = field(default_factory=dict)
    frame: str = ""
    left_out: tuple[str, ...] = ()
    native: Any = None

    __repr__ = repr_with_shapes

    @property
    def cell_count(self) -> int:
        """The number of cells of all lists."""
        return sum(cells.count for cells in self.cells)

    def mesh(self, features: str | None = None) -> Mesh:
        """The shape alone: weighted points, or segments, or triangles, with the point data ``features``. Raises InputError if it holds
        lines and surfaces, or has no such data."""
        simplices = [s for cells in self.cells for s in cells.simplices()]
        if len({s.shape[1] for s in simplices}) > 1:
            raise InputError("the file holds both lines and surfaces; split it into two")
        weights = [x for name, x in self.point_data.items() if name.lower() == "weights"]
        if len(weights) > 1:
            raise InputError("the point data 'weights' occur twice")
        return Mesh(
            self.points,
            np.concatenate(simplices) if simplices else None,
            _checked_weights(weights[0], len(self.points)) if weights else None,
            None if features is None else self._features(features),
        )

    def _features(self, name: str) -> np.ndarray:
        """The point data ``name``, (n, e)."""
        if name not in self.point_data:
            known = ", ".join(self.point_data) or "none"
            raise InputError(f"no point data {name!r}{nearest(name, self.point_data) or f'; there are {known}'}")
        return self.point_data[name].reshape(len(self.points), -1)

    def without_single_points(self) -> PolyData:
        """The same without lines of one point, which only files of streamlines have."""
        keep = np.concatenate([np.empty(0, bool), *((c.kind != "LINES") | (np.diff(c.offsets) > 1) for c in self.cells)])
        if keep.all():
            return self
        cells = []
        for one in self.cells:
            rows = [row for row in one.rows() if one.kind != "LINES" or len(row) > 1]
            cells += [Cells(one.kind, np.cumsum([0, *map(len, rows)]), np.concatenate(rows))] if rows else []
        lost = f"{counted(int((~keep).sum()), 'line')} of one point"
        return replace(
            self, cells=cells, cell_data={k: x[keep] for k, x in self.cell_data.items()}, left_out=(*self.left_out, lost), native=None
        )

    def part(self, kind: Kind) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """The corners of each cell of a kind, and their cell data; strips are among the POLYGONS, as triangles."""
        rows: list[np.ndarray] = []
        picked: list[int] = []
        first = 0
        for cells in self.cells:
            for k, row in enumerate(cells.rows(), first):
                if cells.kind == "TRIANGLE_STRIPS" and kind == "POLYGONS":
                    triangles = row[_pattern("TRIANGLE_STRIPS", len(row))]
                    rows += list(triangles)
                    picked += [k] * len(triangles)
                elif cells.kind == kind:
                    rows.append(row)
                    picked.append(k)
            first += cells.count
        return rows, {name: x[picked] for name, x in self.cell_data.items()}


def make_polydata(
    points: np.ndarray,
    cells: Iterable[Cells] = (),
    *,
    spaces: Sequence[str] = (),
    point_data: Mapping[str, np.ndarray] | None = None,
    cell_data: Mapping[str, np.ndarray] | None = None,
    left_out: Iterable[str] = (),
    native: Any = None,
    shortest: int | None = None,
) -> PolyData:
    """Checked contents of a file.

    Args:
        points: vertices (n, 3) in the space that the file declares.
        spaces: all declarations of it.
        shortest: fewest corners of a cell; None: FEWEST_CORNERS.

    Raises:
        InputError: no points, points that are not finite, cells that name other vertices, data of another length, an unknown space.
    """
    if not len(points):
        raise InputError("no points in it")
    if not np.isfinite(points).all():
        raise InputError(f"point {int(np.argmin(np.isfinite(points).all(1)))} is not finite")
    lists = sorted((c for c in cells if c.count), key=lambda c: get_args(Kind).index(c.kind))
    for one in lists:
        one.check(len(points), shortest)
    out = PolyData(
        _in_ras(points, spaces),
        lists,
        point_data or {},
        cell_data or {},
        "".join({s.upper() for s in spaces}),
        tuple(dict.fromkeys(left_out)),
        native,
    )
    for columns, count, what in ((out.point_data, len(points), "points"), (out.cell_data, out.cell_count, "cells")):
        wrong = next((name for name, x in columns.items() if len(x) != count), None)
        if wrong is not None:
            raise InputError(f"the data {wrong!r} have {len(columns[wrong])} rows, but there are {count} {what}")
    return out


def _pattern(kind: Kind, size: int) -> np.ndarray:
    """The segments (m, 2) or triangles (m, 3) of a cell with the corners 0 to ``size`` - 1."""
    k = np.arange(size)
    if kind == "LINES" or size == 2:
        return np.stack([k[:-1], k[1:]], 1)
    if kind == "TRIANGLE_STRIPS":
        k = k[:-2]
        return np.stack([k, k + 1 + k % 2, k + 2 - k % 2], 1)
    return np.stack([0 * k[2:], k[1:-1], k[2:]], 1)


def _checked_weights(weights: np.ndarray, count: int) -> np.ndarray:
    """Weights (n,) of points in float64; raises InputError where they are not one finite number >= 0 each."""
    if weights.ndim != 1:
        raise InputError(f"the point data 'weights' have {weights.shape[1]} components")
    usable = np.isfinite(weights) & (weights >= 0)
    if not usable.all():
        worst = int(np.argmin(usable))
        raise InputError(f"weight {worst} is {weights[worst]}; each of the {count} points needs a finite weight >= 0")
    return weights.astype(np.float64)


def _in_ras(points: np.ndarray, spaces: Sequence[str]) -> np.ndarray:
    """Points (n, 3) in RAS+, from the space that the file declares (LPS or RAS; none: RAS).

    Raises:
        InputError: another space, or two of them.
    """
    declared = {s.upper() for s in spaces}
    if len(declared) > 1 or not declared <= {"LPS", "RAS"}:
        raise InputError(f"the file declares the space {' and '.join(sorted(declared))}; it must be RAS or LPS")
    return points * FLIP if declared == {"LPS"} else points


def as_vertices(count: int) -> Cells:
    """One VERTICES cell for each of the points."""
    return Cells("VERTICES", np.arange(count + 1), np.arange(count))


def as_rows(kind: Kind, rows: np.ndarray) -> Cells:
    """Cells of the corners (m, k), k of each."""
    return Cells(kind, np.arange(len(rows) + 1) * rows.shape[1], rows.ravel())
