"""Measures: points, curves, fibers and surfaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Transform, composed
from rdmm.types import InputError, Tensor, repr_with_shapes

TANGENT_STEP = 1e-3
"""Half the length, over the measure's longest edge, of the segments by which the derivative of a map along a tangent is measured."""


@dataclass(frozen=True, eq=False)
class Measure:
    """Weighted points; or, with ``cells``, a curve or surface, whose atoms are its segments or triangles.

    Args:
        points: (b, d, n), d = 2 or 3; with cells, the vertices. d = 1, numbers, is for similarities alone.
        weights: (b, n) >= 0, for points without cells; None: 1 / n each. Cells have their lengths or areas as weights.
        normals: (b, d, n) unit directions, for points without cells; or None. Cells have tangents (segments) or normals (triangles).
        cells: (m, 2) segments or (m, 3) triangles, as vertex numbers; or None.
        features: (b, e, n), numbers that go along with each point, for similarities that compare them; or None.

    Raises:
        InputError: shapes that do not fit, points that are not finite, weights that are negative or all 0, or cells together with
            weights or normals.
    """

    points: Tensor
    weights: Tensor | None = None
    normals: Tensor | None = None
    cells: Tensor | None = None
    features: Tensor | None = None

    __repr__ = repr_with_shapes

    def __post_init__(self) -> None:
        for name, x in (("points", self.points), ("weights", self.weights), ("normals", self.normals), ("features", self.features)):
            if isinstance(x, Tensor) and x.is_floating_point() and x.device.type != "meta":
                continue
            if x is not None or name == "points":
                kind = f"{x.dtype} on {x.device.type}" if isinstance(x, Tensor) else type(x).__name__
                raise InputError(f"a measure's {name} are a tensor of real numbers, e.g. torch.float32, not {kind}")
        if self.points.ndim != 3 or self.points.shape[1] not in (1, 2, 3) or self.points.shape[2] < 1:
            raise InputError(f"a measure's points are (b, d, n) with d = 2 or 3 (of numbers 1) and n >= 1, not {tuple(self.points.shape)}")
        if not bool(torch.isfinite(self.points.detach()).all()):
            raise InputError("a measure's points must be finite")
        b, d, n = self.points.shape
        for name, x in (("weights", self.weights), ("normals", self.normals), ("features", self.features)):
            if x is not None and (x.dtype, x.device) != (self.points.dtype, self.points.device):
                raise InputError(
                    f"a measure's {name} are {x.dtype} on {x.device}, but its points {self.points.dtype} on {self.points.device};"
                    f" convert them: {name}.to(points)"
                )
        if self.cells is not None:
            if not isinstance(self.cells, Tensor) or self.cells.dtype not in (torch.int32, torch.int64):
                raise InputError(
                    f"a measure's cells are a tensor of torch.int64, not {getattr(self.cells, 'dtype', type(self.cells).__name__)}"
                )
            if self.weights is not None or self.normals is not None:
                raise InputError(
                    "a measure with cells takes weights and normals from its cells; give cells alone, or weights and normals without cells"
                )
            if self.cells.ndim != 2 or self.cells.shape[1] not in (2, 3) or not len(self.cells):
                raise InputError(f"a measure's cells are (m, 2) segments or (m, 3) triangles, not {tuple(self.cells.shape)}")
            if int(self.cells.min()) < 0 or int(self.cells.max()) >= n:
                raise InputError(f"a measure's cells name vertices from {int(self.cells.min())} to {int(self.cells.max())}; there are {n}")
        if self.weights is not None:
            if self.weights.ndim != 2 or self.weights.shape[0] not in (1, b) or self.weights.shape[1] != n:
                raise InputError(f"a measure's weights are (b, n) = ({b}, {n}), not {tuple(self.weights.shape)}")
            masses = self.weights.sum(1)
            if bool((self.weights < 0).any()) or not bool(((masses > 0) & masses.isfinite()).all()):
                raise InputError("a measure's weights must be finite, >= 0, and not all 0")
        if self.normals is not None:
            if self.normals.ndim != 3 or self.normals.shape[0] not in (1, b) or self.normals.shape[1:] != (d, n):
                raise InputError(f"a measure's normals are (b, d, n) = ({b}, {d}, {n}), not {tuple(self.normals.shape)}")
            if not bool(torch.isfinite(self.normals.detach()).all()):
                raise InputError("a measure's normals must be finite")
        if self.features is not None:
            if self.features.ndim != 3 or self.features.shape[0] not in (1, b) or self.features.shape[2] != n:
                raise InputError(f"a measure's features are (b, e, n) = ({b}, e, {n}), not {tuple(self.features.shape)}")
            if not bool(torch.isfinite(self.features.detach()).all()):
                raise InputError("a measure's features must be finite")
        if d == 1 and (self.normals is not None or self.cells is not None):
            raise InputError("a measure of numbers (d = 1) has no normals and no cells; leave them out")

    @property
    def ndim(self) -> int:
        return self.points.shape[1]

    def atoms(self) -> Measure:
        """The same measure without cells: one point for each cell, at its center, with its length or area as weight, its direction, and the
        mean of its vertices' features."""
        if self.cells is None:
            if self.weights is not None:
                return self
            n = self.points.shape[2]
            return replace(self, weights=self.points.new_full((self.points.shape[0], n), 1 / n))
        corners = [self.points[:, :, self.cells[:, k]] for k in range(self.cells.shape[1])]
        middle = sum(corners[1:], corners[0]) / len(corners)
        features = None if self.features is None else self.features[:, :, self.cells].mean(3)
        direction = corners[1] - corners[0]
        size = 1.0
        if len(corners) == 3:
            direction, size = _cross(direction, corners[2] - corners[0]), 0.5
        length = direction.square().sum(1).clamp_min(1e-30).sqrt()
        return Measure(middle, size * length, direction / length.unsqueeze(1), features=features)

    def thinned(self, count: int) -> Measure:
        """A measure of at most ``count`` atoms, without cells: every k-th one, with k times its weight."""
        atoms = self.atoms()
        assert atoms.weights is not None
        k = -(-atoms.points.shape[2] // count)
        normals, features = (None if x is None else x[:, :, ::k] for x in (atoms.normals, atoms.features))
        return Measure(atoms.points[:, :, ::k], atoms.weights[:, ::k] * k, normals, features=features)

    def moved_by(self, transform: Transform) -> Measure:
        """Push-forward T_# mu: every vertex x moves to T(x). Cells keep their vertices, points without cells their weights.

        The normals of points turn with the planes across them: n becomes the direction of cof(DT) n, like the normals of cells.
        """
        if self.normals is None:
            return replace(self, points=transform(self.points))
        tangents = _tangents(self.normals)
        low, high = self.bounds()
        step = TANGENT_STEP * (float((high - low).max()) or 1.0)
        shifted = [self.points + sign * step * t for t in tangents for sign in (1, -1)]
        points, *ends = transform(torch.cat([self.points, *shifted], 2)).chunk(2 * len(tangents) + 1, 2)
        along = [ahead - behind for ahead, behind in zip(ends[::2], ends[1::2], strict=True)]
        normals = _perpendicular(*along)
        size = self.normals.square().sum(1, keepdim=True) / normals.square().sum(1, keepdim=True).clamp_min(1e-30)
        return replace(self, points=points, normals=normals * size.sqrt())

    @property
    def kind(self) -> tuple[torch.dtype, str]:
        return self.points.dtype, self.points.device.type

    def moved_onto(self, fixed: Measure, transform: Transform) -> Measure:
        return self.moved_by(transform)

    def resampled_like(self, factor: float, fixed: Measure) -> Measure:
        return self.scaled(factor)

    def source(self, fixed: Measure, initial: Transform) -> Measure:
        return self.moved_by(initial)

    def scaled(self, factor: float) -> Measure:
        """Points have no resolution: returns self. Coarsen by the similarity's blur."""
        return self

    def composed(self, first: Transform, then: Transform) -> Transform:
        """The transform of moving by ``first`` and then by ``then``: measures are pushed forward, then ∘ first."""
        return composed(first, then)

    def to(self, device: torch.device) -> Measure:
        parts = (self.points, self.weights, self.normals, self.cells, self.features)
        return Measure(*(None if x is None else x.to(device) for x in parts))  # type: ignore[arg-type]

    def to_float32(self) -> Measure:
        """The measure in float32 on the CPU, as if read from a file."""
        parts = (self.points, self.weights, self.normals, self.features)
        points, weights, normals, features = (None if x is None else x.cpu().float() for x in parts)
        assert points is not None
        return Measure(points, weights, normals, None if self.cells is None else self.cells.cpu(), features)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest coordinates over the batch, (d,) each."""
        flat = self.points.detach().movedim(1, 0).flatten(1)
        return flat.amin(1), flat.amax(1)


def _perpendicular(*tangents: Tensor) -> Tensor:
    """The direction (b, d, n) at right angles to d - 1 tangents: of _tangents(n), that of n."""
    if len(tangents) == 1:
        (t,) = tangents
        return torch.stack([t[:, 1], -t[:, 0]], 1)
    return torch.linalg.cross(*tangents, dim=1)


def _tangents(normals: Tensor) -> list[Tensor]:
    """d - 1 orthogonal unit directions at right angles to the normals (b, d, n)."""
    n = torch.nn.functional.normalize(normals, dim=1)
    if n.shape[1] == 2:
        return [torch.stack([-n[:, 1], n[:, 0]], 1)]
    axis = torch.zeros_like(n).scatter_(1, n.detach().abs().argmin(1, keepdim=True), 1.0)
    first = torch.nn.functional.normalize(torch.linalg.cross(n, axis, dim=1), dim=1)
    return [first, torch.linalg.cross(n, first, dim=1)]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product of (b, d, m); in 2D its signed component out of the plane, (b, 1, m)."""
    if a.shape[1] == 2:
        return (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).unsqueeze(1)
    return torch.linalg.cross(a, b, dim=1)


def frame_of(measures: Sequence[Measure], voxels: int = 64, margin: float = 0.15) -> Grid:
    """A grid around measures, with a margin on every side of ``margin`` times the longest edge of their box.

    A registration uses its domain units, and writes flows on its voxels; ``voxels`` is their number along the longest edge.

    Raises:
        InputError: all points are the same.
    """
    low = torch.stack([m.bounds()[0] for m in measures]).amin(0).double()
    high = torch.stack([m.bounds()[1] for m in measures]).amax(0).double()
    edge = float((high - low).max())
    if not edge > 0:
        raise InputError("all points of the shapes are one point: there is nothing to register")
    low, size = low - margin * edge, high - low + 2 * margin * edge
    h = float(size.max()) / (voxels - 1)
    d = len(low)
    affine = torch.eye(d + 1, dtype=torch.float64)
    affine[:d, :d] *= h
    affine[:d, d] = low
    return Grid(tuple(max(4, math.ceil(float(s) / h) + 1) for s in size), affine.numpy())


def surface(labels: Tensor, grid: Grid, label: int) -> Measure:
    """The boundary of a label in a map (1, 1, *s), as a measure without cells: one point (1, d, n) for each voxel face around it.

    Points are the centers of faces in world millimeters, weights their areas; normals point outwards.

    Raises:
        InputError: the map does not contain the label.
    """
    inside = labels[0, 0].round().long() == label
    if not bool(inside.any()):
        raise InputError(f"there is no label {label} in the map")
    edges = torch.as_tensor(grid.affine, dtype=torch.float64)[:-1, :-1]
    centers, normals, areas = [], [], []
    padded = torch.nn.functional.pad(inside.double(), (1, 1) * grid.ndim)
    for axis in range(grid.ndim):
        step = padded.diff(dim=axis)
        index = step.nonzero().double() - 1
        index[:, axis] += 0.5
        others = [edges[:, k] for k in range(grid.ndim) if k != axis]
        normal = torch.linalg.cross(*others) if grid.ndim == 3 else torch.stack([others[0][1], -others[0][0]])
        normal = normal * torch.sign(normal @ edges[:, axis])
        sign = -step[step != 0].unsqueeze(1)
        centers.append(grid.voxel_to_world(index))
        normals.append(sign * normal / normal.norm())
        areas.append(normal.norm().expand(len(index)))
    points, directions, weights = torch.cat(centers), torch.cat(normals), torch.cat(areas)
    return Measure(points.T[None].contiguous(), weights[None], directions.T[None].contiguous())


def voxels(data: Tensor, grid: Grid) -> Measure:
    """The voxels of a density (1, 1, *s) that are above 0: points in world millimeters, with their values as weights.

    Raises:
        InputError: the density is 0 everywhere.
    """
    density = data[0, 0]
    index = (density > 0).nonzero()
    if not len(index):
        raise InputError("the image is 0 everywhere: no measure")
    points = grid.voxel_to_world(index.double())
    return Measure(points.T[None].to(density), density[density > 0][None])
