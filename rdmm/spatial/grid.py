"""Grids, and their coordinates: voxel indices, world millimeters and domain units."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch

from rdmm.kernels.available import is_on_host
from rdmm.runtime.resources import require_memory
from rdmm.spatial.placement import Matrix, Placement, are_edges
from rdmm.types import LENGTHS, InputError, Tensor

Points = TypeVar("Points", np.ndarray, Tensor)

MAX_CACHED_VOXELS = 2**20
"""Largest grid, in voxels, whose coordinates are cached: 12 MB of float32 in 3D. Not measured."""


def is_invertible(matrix: np.ndarray) -> bool:
    """Whether a homogeneous matrix (d+1, d+1) is affine and can be inverted, whatever the unit of its lengths."""
    last_row = np.allclose(matrix[-1], np.eye(len(matrix))[-1])
    return last_row and are_edges(matrix[:-1, :-1]) and bool(np.abs(matrix[:-1, -1]).max() <= LENGTHS[1])


@dataclass(frozen=True)
class Grid:
    """A regular grid in the world.

    Args:
        shape: voxels per axis, (n_1..n_d), d = 2 or 3.
        affine: (d+1, d+1) matrix from voxel indices to world millimeters (RAS+).
        placement: how the file of this grid places its voxels; None for a grid that was not read from a file. Equal grids may differ in it.

    **Domain units** are millimeters along the voxel axes, divided by the longest edge and measured from voxel 0. The longest
    edge is 1, and an isotropic Gaussian in domain units is isotropic in millimeters, model (1). Grids of the
    same *frame* (origin, axes and edges) share their domain units, whatever their number of voxels.
    """

    shape: tuple[int, ...]
    affine: Matrix | np.ndarray  # stored as a Matrix
    placement: Placement | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        try:
            matrix, shape = np.asarray(self.affine), tuple(operator.index(n) for n in self.shape)
            matrix = matrix.astype(np.float64, casting="same_kind" if matrix.dtype.kind == "c" else "unsafe")
        except (TypeError, ValueError) as error:
            raise InputError(f"a grid is a shape of whole numbers and an affine matrix of numbers ({error})") from error
        d = len(shape)
        if d not in (2, 3):
            raise InputError(f"a grid has 2 or 3 axes, not {d} (shape {shape})")
        if matrix.shape != (d + 1, d + 1):
            raise InputError(f"a {d}D grid needs a ({d + 1}, {d + 1}) affine, not {matrix.shape}")
        if min(shape) < 2:
            raise InputError(f"a grid needs at least 2 voxels along each axis, not {shape}")
        if not is_invertible(matrix):
            raise InputError(
                f"the affine is singular, not finite, beyond {LENGTHS[0]:g} to {LENGTHS[1]:g} mm, or has another last row than 0 .. 0 1:"
                f" {matrix.tolist()}; correct it"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", tuple(map(tuple, matrix.tolist())))

    @classmethod
    def placed(cls, placement: Placement) -> Grid:
        """The grid of a file's voxels: 2D for a single slice, in the plane of the slice."""
        if not placement.is_usable():
            raise InputError(
                f"the affine is singular, not finite, or beyond {LENGTHS[0]:g} to {LENGTHS[1]:g} mm: {placement.affine}; correct it"
            )
        return cls(tuple(placement.shape[k] for k in placement.axes), placement.grid_affine(), placement)

    @classmethod
    def unit(cls, shape: Sequence[int]) -> Grid:
        """The papers' domain [0, 1]^d: spacing 1 / (n - 1) along each axis, origin 0."""
        try:
            spacing = [1.0 / max(operator.index(n) - 1, 1) for n in shape]
        except TypeError as error:
            raise InputError(f"a grid's shape is a list of whole numbers, e.g. (64, 64), not {shape!r}") from error
        return cls(tuple(shape), np.diag([*spacing, 1.0]))

    def __repr__(self) -> str:
        return f"Grid({' x '.join(map(str, self.shape))} voxels of {' x '.join(f'{h:.4g}' for h in self.voxel)} mm)"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @cached_property
    def voxel(self) -> tuple[float, ...]:
        """Edge lengths of a voxel, in millimeters."""
        return tuple(float(x) for x in np.linalg.norm(np.asarray(self.affine)[:-1, :-1], axis=0))

    @cached_property
    def length(self) -> float:
        """The longest edge between voxel centers, in millimeters: one domain unit."""
        return max((n - 1) * h for n, h in zip(self.shape, self.voxel, strict=True))

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighboring voxels, in domain units."""
        return tuple(h / self.length for h in self.voxel)

    @property
    def cell(self) -> float:
        """Volume of a voxel in domain units: the weight of a voxel in an integral."""
        return math.prod(self.spacing)

    @property
    def extent(self) -> tuple[float, ...]:
        """Distance between the first and the last voxel along each axis, in domain units."""
        return tuple((n - 1) * h for n, h in zip(self.shape, self.spacing, strict=True))

    @cached_property
    def frame(self) -> np.ndarray:
        """(d+1, d+1) matrix from domain units to world millimeters."""
        return np.asarray(self.affine) @ np.diag([*(1.0 / h for h in self.spacing), 1.0])

    def identity(self, like: Tensor) -> Tensor:
        """Coordinates of all voxels in domain units, (1, d, *s), with the dtype and device of ``like``.

        It is one tensor as long as it is in use, and of small grids it is kept: do not write to it. Dense recognizes it and skips the
        interpolation.
        """
        voxels = math.prod(self.shape)
        if voxels > MAX_CACHED_VOXELS and is_on_host(like):
            # whatever is computed on all voxels begins here: their coordinates, where they go, a value each
            require_memory((2 * self.ndim + 1) * voxels * like.element_size(), f"a grid of {'x'.join(map(str, self.shape))} voxels")
        make = _cached_coordinates if voxels <= MAX_CACHED_VOXELS else _shared_coordinates
        return make(self.shape, self.spacing, like.dtype, like.device)

    def is_identity(self, x: Tensor) -> bool:
        """Whether x is the same tensor object that ``identity`` returns. A field on this grid is then not interpolated at x."""
        return x.shape[2:] == self.shape and x is _coordinates_in_use.get((self.shape, self.spacing, x.dtype, x.device))

    @property
    def directions(self) -> np.ndarray:
        """(d, d) matrix whose column j is the unit direction of voxel axis j in the world."""
        return np.asarray(self.affine)[:-1, :-1] / np.asarray(self.voxel)

    def voxel_to_world(self, index: Points) -> Points:
        """World millimeters (..., d) of voxel indices (..., d), which may be fractions; float64 tensors or arrays."""
        affine = torch.as_tensor(self.affine, dtype=torch.float64) if isinstance(index, Tensor) else np.asarray(self.affine)
        return index @ affine[:-1, :-1].T + affine[:-1, -1]

    def world_to_voxel(self, points: np.ndarray) -> np.ndarray:
        """Voxel indices (..., d) of world millimeters (..., d); not rounded."""
        inverse = np.linalg.inv(self.affine)
        return points @ inverse[:-1, :-1].T + inverse[:-1, -1]

    def strided(self, steps: Sequence[int]) -> Grid:
        """The grid of every ``steps[j]``-th voxel along axis j, beginning with the first."""
        shape = tuple(-(-n // k) for n, k in zip(self.shape, steps, strict=True))
        return Grid(shape, np.asarray(self.affine) @ np.diag([*steps, 1]))

    def pooled(self, steps: Sequence[int]) -> Grid:
        """The grid of the centers of blocks of ``steps`` voxels; incomplete blocks at the end are left out."""
        change = np.diag([*steps, 1.0])
        change[:-1, -1] = [(k - 1) / 2 for k in steps]
        return Grid(tuple(n // k for n, k in zip(self.shape, steps, strict=True)), np.asarray(self.affine) @ change)

    def resized(self, shape: Sequence[int]) -> Grid:
        """The grid with another number of voxels in the same frame: the first and last voxels stay where they are."""
        ratio = [(n - 1) / (k - 1) for n, k in zip(self.shape, shape, strict=True)]
        return Grid(tuple(shape), np.asarray(self.affine) @ np.diag([*ratio, 1.0]))

    def scaled(self, factor: float, smallest: int = 4) -> Grid:
        """A coarser grid of the same frame: its voxel edges are the smallest edge of this grid divided by ``factor``.

        Edges that are longer already do not change, so coarse levels of an anisotropic grid become isotropic. An axis keeps at least
        ``smallest`` voxels, or all if it has fewer.
        """
        target = min(self.voxel) / factor
        return self.resized(
            [min(n, max(min(n, smallest), round((n - 1) * h / max(h, target)) + 1)) for n, h in zip(self.shape, self.voxel, strict=True)]
        )

    def same_frame(self, other: Grid) -> bool:
        """Whether equal domain units are equal points of the world in both grids (to 1e-6 domain units)."""
        return self.ndim == other.ndim and bool(np.abs(self.frame - other.frame).max() <= 1e-6 * self.length)

    def offset(self, other: Grid) -> float:
        """Largest distance between equal voxels of two grids of one shape, in voxels of this grid."""
        index = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1).reshape(-1, self.ndim)
        return float(np.abs(self.world_to_voxel(other.voxel_to_world(index)) - index).max())

    def contains(self, x: Tensor) -> Tensor:
        """Which points x (b, d, *t), in domain units, are in the field of view, (b, 1, *t): at most half a voxel beyond the edge voxels."""
        h, far = (constant(v, x).view(1, -1, *(1,) * (x.ndim - 2)) for v in (self.spacing, self.extent))
        return ((x >= -h / 2) & (x <= far + h / 2)).all(1, keepdim=True)

    def canonical(self) -> Grid:
        """The same voxels with the axes in the order and direction closest to R, A, S: independent of how a file stores them."""
        linear = np.asarray(self.affine)[:-1, :-1]
        rest, order = np.abs(linear / np.linalg.norm(linear, axis=0)), [0] * self.ndim
        for _ in range(self.ndim):
            world, axis = divmod(int(np.argmax(rest)), self.ndim)
            order[world] = axis
            rest[world], rest[:, axis] = -1, -1
        change = np.zeros((self.ndim + 1, self.ndim + 1))
        change[-1, -1] = 1
        for world, axis in enumerate(order):
            backward = linear[world, axis] < 0
            change[axis, world] = -1 if backward else 1
            change[axis, -1] = self.shape[axis] - 1 if backward else 0
        placement = None if self.placement is None else self.placement.reordered(order, change)
        return Grid(tuple(self.shape[a] for a in order), np.asarray(self.affine) @ change, placement)

    def restored(self, x: Tensor, like: Grid) -> Tensor:
        """Reorder x (..., *s) on this grid to the storage order of ``like``, a grid of the same voxels."""
        change = np.rint(np.linalg.inv(np.asarray(self.affine)) @ np.asarray(like.affine))[:-1, :-1]
        order = [int(np.argmax(np.abs(change[:, j]))) for j in range(self.ndim)]
        start = x.ndim - self.ndim
        x = x.permute(*range(start), *(start + i for i in order))
        backward = [start + j for j, i in enumerate(order) if change[i, j] < 0]
        return x.flip(backward).contiguous() if backward else x.contiguous()

    def to_world(self, x: Tensor) -> Tensor:
        """Convert points from domain units to world millimeters; (b, d, *t) both."""
        return apply_matrix(self.frame, x)

    def from_world(self, x: Tensor) -> Tensor:
        """Convert points from world millimeters to domain units; (b, d, *t) both."""
        return apply_matrix(np.linalg.inv(self.frame), x)

    def corners(self) -> np.ndarray:
        """The box around the voxel centers in world millimeters: (2, d), lowest and highest coordinates."""
        index = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1).reshape(-1, self.ndim)
        world = self.voxel_to_world(index)
        return np.stack([world.min(0), world.max(0)])


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """A short vector of the dtype and device of ``like``; do not write to it. It is cached: a copy to a GPU makes the host wait."""
    return _constant(values, like.dtype, like.device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


Coordinates = tuple[tuple[int, ...], tuple[float, ...], torch.dtype, torch.device]

_coordinates_in_use: WeakValueDictionary[Coordinates, Tensor] = WeakValueDictionary()
"""Coordinates that are in use: equal grids share one tensor, even after the cache has dropped it."""


def _coordinates(shape: tuple[int, ...], spacing: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    axes = [torch.arange(n, dtype=dtype, device=device) * h for n, h in zip(shape, spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


@torch.inference_mode(False)  # what is shared from the caller's inference mode could not have gradients later
def _shared_coordinates(*key: Any) -> Tensor:
    known = _coordinates_in_use.get(key)
    return _coordinates_in_use.setdefault(key, _coordinates(*key)) if known is None else known


_cached_coordinates = lru_cache(maxsize=16)(_shared_coordinates)


def require_one_dimension(dimensions: Mapping[str, int | None]) -> None:
    """Check that what is used together is all 2D or all 3D.

    Args:
        dimensions: 2, 3 or None (fits both), by the name that the message gives: a file where there is one.

    Raises:
        InputError: two dimensions differ; the message names both.
    """
    known = {name: d for name, d in dimensions.items() if d is not None}
    first = next(iter(known), "")
    for name, d in known.items():
        if d != known[first]:
            raise InputError(f"{first} is {known[first]}D but {name} is {d}D; give both of one dimension")


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def frame_change(origin: Grid, frame: Grid, device: torch.device) -> Tensor:
    """(d+1, d+1) float64 matrix from domain units of ``origin``'s frame to those of ``frame``, on a device: it is copied there once."""
    matrix = torch.linalg.inv(torch.as_tensor(frame.frame)) @ torch.as_tensor(origin.frame)
    return matrix.to(device)


def apply_matrix(matrix: np.ndarray | Tensor, x: Tensor) -> Tensor:
    """Map points (b, d, *t) by a homogeneous matrix (d+1, d+1), or by a batch (b, d+1, d+1); batches of 1 are expanded."""
    m = torch.as_tensor(matrix, dtype=x.dtype, device=x.device)
    d, b = x.shape[1], max(x.shape[0], m.shape[0] if m.ndim == 3 else 1)
    m, x = m.expand(b, *m.shape[-2:]), x.expand(b, *x.shape[1:])
    points = x.reshape(b, d, -1)
    if not (m.requires_grad and torch.is_grad_enabled()):
        return _affine(m, points).reshape(x.shape)
    # the gradient of the matrix is a sum over points: fixed blocks make it independent of the number of threads
    whole = points.shape[2] - points.shape[2] % SUM_BLOCK
    blocks = points[..., :whole].unflatten(2, (-1, SUM_BLOCK)).transpose(1, 2)
    k = blocks.shape[1]
    moved = _affine(m[:, None].expand(b, k, -1, -1).reshape(b * k, *m.shape[1:]), blocks.reshape(b * k, d, SUM_BLOCK))
    moved = moved.view(b, k, d, SUM_BLOCK).transpose(1, 2).reshape(b, d, whole)
    return torch.cat([moved, _affine(m, points[..., whole:])], 2).reshape(x.shape)


def _affine(m: Tensor, points: Tensor) -> Tensor:
    """Points (b, d, n) under matrices (b, d+1, d+1)."""
    d = points.shape[1]
    with torch.autocast(points.device.type, enabled=False):
        return torch.baddbmm(m[:, :d, d:], m[:, :d, :d], points)


SUM_BLOCK = 4096
"""Block length of the deterministic sums (ops.total). Not measured; results depend on it."""
