"""Pairs of shapes (images or measures), with an initial map and other prior knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, Self, TypeVar

import torch

from rdmm.spatial.grid import Grid, constant
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Identity, Transform
from rdmm.types import ConfigError, Tensor, repr_with_shapes


class Shape(Protocol):
    """An object that a transform moves: an Image or a Measure."""

    @property
    def kind(self) -> tuple[torch.dtype, str]:
        """Precision and device."""
        ...

    def moved_onto(self, fixed: Self, transform: Transform) -> Self:
        """The shape moved by a transform, onto the grid or into the frame of ``fixed``."""
        ...

    def scaled(self, factor: float) -> Self: ...

    def resampled_like(self, factor: float, fixed: Self) -> Self:
        """Resampled to the voxel size of ``fixed.scaled(factor)``."""
        ...

    def source(self, fixed: Self, initial: Transform) -> Self:
        """The shape on which the geodesic is shot; its initial conditions live in its frame, after the initial map."""
        ...

    def composed(self, first: Transform, then: Transform) -> Transform:
        """The map that moves a shape by ``first`` and then by ``then``."""
        ...


S = TypeVar("S", bound=Shape)


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Corresponding points, (b, d, k) each, in domain units of the fixed frame."""

    fixed: Tensor
    moving: Tensor

    __repr__ = repr_with_shapes


@dataclass(frozen=True, eq=False)
class Pair(Generic[S]):
    """A fixed and a moving shape, and prior knowledge about the map between them.

    Args:
        fixed, moving: two images, each on its own grid, or two measures in one frame.
        initial: map with which the result is composed. Images: fixed -> moving, in the fixed frame; measures: moving -> fixed.
        regions: label map (b, 1, *s) of the moving image, for pre-defined regularizers.
        landmarks: corresponding points, for the landmark term of Problem.

    Raises:
        ConfigError: the two shapes differ in precision or device.
    """

    fixed: S
    moving: S
    initial: Transform = field(default_factory=Identity)
    regions: Image | None = None
    landmarks: Correspondence | None = None

    def __post_init__(self) -> None:
        a, b = self.fixed.kind, self.moving.kind
        if a != b:
            raise ConfigError(f"fixed is {a[0]} on {a[1]} but moving is {b[0]} on {b[1]}; convert one of them first (.to)")

    def __repr__(self) -> str:
        more = {"initial": self.initial, "regions": self.regions, "landmarks": self.landmarks and "given"}
        given = [f"{k}={v}" for k, v in more.items() if v is not None and not isinstance(v, Identity)]
        return f"Pair({', '.join([f'fixed={self.fixed!r}', f'moving={self.moving!r}', *given])})"

    def scaled(self, factor: float) -> Pair[S]:
        """Both shapes, resampled to the voxel size of ``fixed.scaled(factor)``."""
        return replace(self, fixed=self.fixed.scaled(factor), moving=self.moving.resampled_like(factor, self.fixed))

    @property
    def source(self) -> S:
        """The shape on which the geodesic is shot (Shape.source)."""
        return self.moving.source(self.fixed, self.initial)

    def with_initial(self, transform: Transform) -> Pair[S]:
        """The same pair with ``transform`` as its initial map."""
        return replace(self, initial=transform)

    def total_map(self, transform: Transform) -> Transform:
        """The initial map followed by ``transform``, as one map."""
        return self.moving.composed(self.initial, transform)

    def moved_by(self, transform: Transform) -> S:
        """The moving shape moved to the fixed one by the initial map followed by ``transform``."""
        return self.moving.moved_onto(self.fixed, self.total_map(transform))


def format_boxes(grids: Sequence[Grid]) -> str:
    """The boxes of grids in the world, as text for messages."""
    return " and ".join(f"[{', '.join(f'{a:.0f}..{b:.0f}' for a, b in g.corners().T)}] mm" for g in grids)


def overlap_fraction(pair: Pair[Image]) -> float:
    """Fraction of the fixed image's voxels that the initial map takes into the moving image's field of view."""
    x = pair.fixed.grid.identity(pair.fixed.data.double())
    y = pair.moving.locate(pair.initial(x), pair.fixed.grid)
    far = constant(pair.moving.grid.extent, y).view(1, -1, *(1,) * (y.ndim - 2))
    margin = 1e-6
    return float(((y >= -margin) & (y <= far + margin)).all(1).double().mean())


def with_field_of_view(pair: Pair[Image]) -> Pair[Image]:
    """The pair with a mask of the moving image's field of view, so that voxels outside it have no weight."""
    moving = pair.moving
    if moving.mask is None:
        moving = replace(moving, mask=torch.ones_like(moving.data[:, :1]))
    return replace(pair, moving=moving)


FULL_OVERLAP = 0.999
"""Fraction of the fixed image's voxels that must lie inside the moving image; below it, voxels outside are masked. Just under 1, so that
rounding at the border makes no mask. Not measured."""


def ready_for_overlap(pair: Pair[Image]) -> Pair[Image]:
    """The pair as similarities compare it: filled in outside of masks, and masked to the field of view where the images overlap in part."""
    pair = replace(pair, fixed=pair.fixed.inpainted(), moving=pair.moving.inpainted())
    return pair if overlap_fraction(pair) >= FULL_OVERLAP else with_field_of_view(pair)
