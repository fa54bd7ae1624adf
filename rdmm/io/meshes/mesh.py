"""What a mesh file holds, and cells of any number of corners as segments and triangles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rdmm.types import InputError

Kind = Literal["VERTICES", "LINES", "POLYGONS", "TRIANGLE_STRIPS"]

FEWEST_CORNERS: dict[Kind, int] = {"VERTICES": 1, "LINES": 2, "POLYGONS": 2, "TRIANGLE_STRIPS": 3}
"""The smallest cell of each kind. A polygon of two corners is a segment."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """The contents of a mesh file: vertices (n, 3), segments (m, 2) or triangles (m, 3) or None, and weights (n,) or None."""

    points: np.ndarray
    cells: np.ndarray | None = None
    weights: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of one kind as a file lists them: cell k has the vertices ``corners[offsets[k] : offsets[k + 1]]``."""

    kind: Kind
    offsets: np.ndarray
    corners: np.ndarray

    def check(self, points: int) -> None:
        """Raise InputError if a cell has too few corners, or a vertex that is not among the ``points``."""
        sizes = np.diff(self.offsets)
        if len(sizes) and sizes.min() < (fewest := FEWEST_CORNERS[self.kind]):
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


def _pattern(kind: Kind, size: int) -> np.ndarray:
    """The segments (m, 2) or triangles (m, 3) of a cell with the corners 0 to ``size`` - 1."""
    k = np.arange(size)
    if kind == "LINES" or size == 2:
        return np.stack([k[:-1], k[1:]], 1)
    if kind == "TRIANGLE_STRIPS":
        k = k[:-2]
        return np.stack([k, k + 1 + k % 2, k + 2 - k % 2], 1)
    return np.stack([0 * k[2:], k[1:-1], k[2:]], 1)


def make_mesh(points: np.ndarray, lists: Sequence[Cells], weights: np.ndarray | None) -> Mesh:
    """A mesh of checked contents.

    Raises:
        InputError: no points, points or weights that cannot be used, cells that name other vertices, or lines together with surfaces.
    """
    if not len(points):
        raise InputError("no points in it")
    if not np.isfinite(points).all():
        raise InputError(f"point {int(np.argmin(np.isfinite(points).all(1)))} is not finite")
    if weights is not None:
        usable = np.isfinite(weights) & (weights >= 0)
        if len(weights) != len(points) or not usable.all():
            what = f"{len(weights)} weights" if usable.all() else f"weight {int(np.argmin(usable))} is {weights[np.argmin(usable)]}"
            raise InputError(f"{what}; each of the {len(points)} points needs a finite weight >= 0")
    for cells in lists:
        cells.check(len(points))
    simplices = [s for cells in lists for s in cells.simplices()]
    if len({s.shape[1] for s in simplices}) > 1:
        raise InputError("the file holds both lines and surfaces; split it into two")
    return Mesh(points, np.concatenate(simplices) if simplices else None, weights)


def in_ras(points: np.ndarray, spaces: Sequence[str]) -> np.ndarray:
    """Points (n, 3) in RAS+, from the space that the file declares (LPS or RAS; none: RAS).

    Raises:
        InputError: another space, or two of them.
    """
    declared = {s.upper() for s in spaces}
    if len(declared) > 1 or not declared <= {"LPS", "RAS"}:
        raise InputError(f"the file declares the space {' and '.join(sorted(declared))}; it must be RAS or LPS")
    return points * np.array([-1.0, -1.0, 1.0]) if declared == {"LPS"} else points
