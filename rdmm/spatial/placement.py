"""How a file places its voxels in three dimensions: the unit of its lengths, and the plane of a single slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from rdmm.types import LENGTHS, InputError

Matrix = tuple[tuple[float, ...], ...]

Unit = Literal["mm", "micron", "meter"]

MILLIMETERS: dict[Unit, float] = {"mm": 1.0, "micron": 1e-3, "meter": 1e3}

PLANES = ("sagittal", "coronal", "axial")
"""Names of the planes across the first, second and third axis of the world."""

SAME_PLANE = np.cos(np.radians(1))
"""Cosine of the largest angle between two slices of one plane. Not measured."""

MIN_VOLUME = 1e-6
"""Smallest volume between unit vectors along the axes, below which these are parallel to rounding in float32. Not measured."""


def are_edges(columns: np.ndarray) -> bool:
    """Whether vectors, the columns of (n, k), can be the edges of a voxel: finite, not parallel, and of possible lengths."""
    with np.errstate(over="ignore"):  # an infinite length is too long
        lengths = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(lengths).all() and lengths.min() >= LENGTHS[0] and lengths.max() <= LENGTHS[1]):
        return False
    unit = columns / lengths
    return bool(np.linalg.det(unit.T @ unit) > MIN_VOLUME**2)


@dataclass(frozen=True)
class Placement:
    """How a file places the voxels of a grid. Results on this grid are written in the same way.

    Args:
        shape: voxels along the axes of the file, (X, Y) or (X, Y, Z); a single slice has one axis of one voxel.
        affine: (4, 4) matrix from voxel indices to the world (RAS+), in ``unit``.
        unit: unit of the file's lengths.
        code: what NIfTI's s-form or q-form says of the world: 1 scanner, 2 aligned, 3 Talairach, 4 MNI.
    """

    shape: tuple[int, ...]
    affine: Matrix | np.ndarray  # stored as a Matrix
    unit: Unit = "mm"
    code: int = 1

    def __post_init__(self) -> None:
        assert self.unit in get_args(Unit)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", tuple(map(tuple, np.asarray(self.affine, dtype=np.float64).tolist())))

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the grid: all of the file, but that of a single slice."""
        return tuple(k for k, n in enumerate(self.shape) if n > 1 or len(self.shape) == 2)

    @property
    def columns(self) -> np.ndarray:
        """(3, d + 1): the edges of a voxel along the grid's axes, and the origin, in millimeters."""
        columns = np.asarray(self.affine)[:3, [*self.axes, 3]]
        if self.unit == "mm":
            return columns
        # rounded as in a header in millimeters, so that the results are those of such a file
        with np.errstate(over="ignore"):  # is_usable refuses what overflows
            return (columns * MILLIMETERS[self.unit]).astype(np.float32).astype(np.float64)

    def is_usable(self) -> bool:
        """Whether the affine is finite, and not singular along the grid's axes."""
        return len(self.axes) > 1 and are_edges(self.columns[:, :-1]) and bool(np.abs(self.columns[:, -1]).max() <= LENGTHS[1])

    @cached_property
    def normal(self) -> np.ndarray | None:
        """Unit vector (3,) across a single slice, whose largest component is positive; None for a volume."""
        if len(self.axes) != 2:
            return None
        a, b, _ = self.columns.T
        across = np.cross(a / np.linalg.norm(a), b / np.linalg.norm(b))
        across = across / np.linalg.norm(across)
        return across * np.sign(across[_largest(across)])

    def grid_affine(self) -> np.ndarray:
        """(d+1, d+1) affine of the grid in millimeters.

        A slice has the two coordinates of its own plane: the smallest rotation turns it across the nearest axis of the world, and the two
        other coordinates are kept. They do not depend on how the slice is stored.
        """
        columns = self.columns
        if self.normal is not None:
            across = _largest(self.normal)
            columns = np.delete(_rotation(self.normal, np.eye(3)[across]) @ columns, across, axis=0)
        return np.vstack([columns, np.eye(columns.shape[1])[-1]])

    def reordered(self, order: Sequence[int], change: np.ndarray) -> Placement:
        """The same voxels with the grid's axes in another order: new axis j is axis ``order[j]``.

        Args:
            change: (d+1, d+1) matrix from new to old voxel indices of the grid.
        """
        shape, whole = list(self.shape), np.eye(4)
        for axis, old in zip(self.axes, order, strict=True):
            shape[axis] = self.shape[self.axes[old]]
        whole[np.ix_([*self.axes, 3], [*self.axes, 3])] = change
        return replace(self, shape=tuple(shape), affine=np.asarray(self.affine) @ whole)

    def storable_affine(self) -> np.ndarray:
        """``affine``, with a thickness for a single slice that has none, or none that can be: the mean edge of a voxel."""
        affine = np.array(self.affine)
        if self.normal is not None:
            (thin,) = set(range(3)) - set(self.axes)
            if not are_edges(affine[:3, :3]):
                affine[:3, thin] = self.normal * np.linalg.norm(affine[:3, self.axes], axis=0).mean()
        return affine

    @property
    def plane(self) -> str:
        """The plane of a slice in words, e.g. "coronal" or "oblique (normal 0.00, 0.77, 0.64)"; "" for a volume."""
        if self.normal is None:
            return ""
        across = _largest(self.normal)
        tilted = self.normal[across] < SAME_PLANE
        return f"oblique (normal {', '.join(f'{x:.2f}' for x in self.normal.round(2) + 0.0)})" if tilted else PLANES[across]


def _largest(normal: np.ndarray) -> int:
    """The axis of the largest component; of equal ones the last, whatever the rounding."""
    return int(np.argmax(np.abs(normal) + np.array([0, 1e-3, 2e-3])))


def _rotation(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that takes the unit vector ``start`` to ``end``, which is less than 180 degrees away."""
    x, y, z = np.cross(start, end)
    spin = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + spin + spin @ spin / (1 + start @ end)


def require_same_plane(a: Placement | None, b: Placement | None, names: str = "the two images") -> None:
    """Raise InputError if two single slices lie in planes of different directions. ``names`` is for the message."""
    if a is None or b is None or a.normal is None or b.normal is None:
        return
    if _largest(a.normal) != _largest(b.normal) or a.normal @ b.normal < SAME_PLANE:
        raise InputError(
            f"{names} are slices of different planes, {a.plane} and {b.plane}; cut both along one plane, or correct the wrong header"
        )
