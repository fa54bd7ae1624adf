"""What is registered: images on grids, and pairs of shapes (for measures see ``measure``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, Self, TypeVar

import torch

from rdmm.grid import Grid, apply_matrix
from rdmm.ops import Mode, resize, sample
from rdmm.smoother import lowpass
from rdmm.transform import Identity, Transform, composed
from rdmm.types import ConfigError, InputError, Tensor


class Shape(Protocol):
    """An object that a transform moves: an Image or a Measure."""

    @property
    def kind(self) -> tuple[torch.dtype, str]:
        """Precision and device."""
        ...

    def moved_onto(self, fixed: Self, transform: Transform) -> Self:
        """Moved by a transform to where ``fixed`` is."""
        ...

    def scaled(self, factor: float) -> Self: ...

    def level(self, factor: float, fixed: Self) -> Self:
        """At the resolution that ``factor`` gives ``fixed``."""
        ...

    def source(self, fixed: Self, initial: Transform) -> Self:
        """The shape that is shot, in the frame that its initial conditions live in: the pre-aligned space."""
        ...

    def composed(self, first: Transform, then: Transform) -> Transform:
        """The transform of moving by ``first`` and then by ``then``."""
        ...


S = TypeVar("S", bound=Shape)


@dataclass(frozen=True, eq=False)
class Image:
    """Intensities on a grid, with an optional mask of where they count.

    Args:
        data: (b, c, *s).
        grid: of the last axes.
        mask: (b, 1, *s) in [0, 1], or None: everywhere.
    """

    data: Tensor
    grid: Grid
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        for name, x in (("data", self.data), ("mask", self.mask)):
            if x is not None and tuple(x.shape[2:]) != self.grid.shape:
                raise InputError(f"an image's {name} is (b, c, *grid.shape); got {tuple(x.shape)} on a grid of {self.grid.shape}")

    def moved_by(self, transform: Transform, onto: Grid | None = None, *, mode: Mode = "linear") -> Image:
        """Pull-back I ∘ T: the image at T(x) for each voxel x of ``onto`` (default: its own grid).

        ``transform`` is in domain units of ``onto``'s frame. Beyond the image: its edge value, or 0 for labels
        (``mode="nearest"``); beyond the mask: 0.
        """
        onto = onto or self.grid
        points = self.locate(transform(onto.identity(self.data)), onto)
        mask = None if self.mask is None else sample(self.mask, points.detach(), self.grid, mode=mode, outside="zero")
        return Image(sample(self.data, points, self.grid, mode=mode, outside="edge" if mode == "linear" else "zero"), onto, mask)

    @property
    def kind(self) -> tuple[torch.dtype, str]:
        return self.data.dtype, self.data.device.type

    def moved_onto(self, fixed: Image, transform: Transform) -> Image:
        return self.moved_by(transform, fixed.grid)

    def level(self, factor: float, fixed: Image) -> Image:
        return self.scaled(min(1.0, factor * min(self.grid.voxel) / min(fixed.grid.voxel)))

    def source(self, fixed: Image, initial: Transform) -> Image:
        """Images: the moving one, or, where there is an initial map, its pull-back, of which only the fixed grid is asked for."""
        aligned = isinstance(initial, Identity) and self.grid.same_frame(fixed.grid)
        return self if aligned else fixed

    def locate(self, points: Tensor, frame: Grid) -> Tensor:
        """Points (b, d, *t) in domain units of ``frame`` in this image's own domain units."""
        if self.grid.same_frame(frame):
            return points
        return apply_matrix(torch.linalg.inv(torch.as_tensor(self.grid.frame)) @ torch.as_tensor(frame.frame), points)

    def scaled(self, factor: float) -> Image:
        """One level of a pyramid: see Grid.scaled."""
        return self.resampled(self.grid.scaled(factor))

    def resampled(self, grid: Grid) -> Image:
        """On a grid of the same frame, after a low-pass along the axes where it is coarser."""
        if grid == self.grid:
            return self
        data, mask = (None if x is None else resize(lowpass(x, self.grid, grid), grid.shape) for x in (self.data, self.mask))
        assert data is not None
        return Image(data, grid, mask)

    def canonical(self) -> Image:
        """The same image stored in the order of Grid.canonical."""
        grid = self.grid.canonical()
        if grid == self.grid:
            return self
        return Image(self.grid.restored(self.data, grid), grid, None if self.mask is None else self.grid.restored(self.mask, grid))

    def composed(self, first: Transform, then: Transform) -> Transform:
        """The transform of moving by ``first`` and then by ``then``: images pull back, first ∘ then."""
        return composed(then, first)

    def single(self) -> Image:
        """In float32 on CPU, as a file would be read."""
        return Image(self.data.cpu().float(), self.grid, None if self.mask is None else self.mask.cpu().float())

    def to(self, device: torch.device) -> Image:
        return Image(self.data.to(device), self.grid, None if self.mask is None else self.mask.to(device))


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Points that belong together, (b, d, k) each in domain units of the fixed frame."""

    fixed: Tensor
    moving: Tensor


@dataclass(frozen=True, eq=False)
class Pair(Generic[S]):
    """A fixed and a moving shape, and what is known of the map between them.

    Args:
        fixed, moving: two images, each on its own grid, or two measures in one frame.
        initial: what is solved for is composed with it. Images: fixed -> moving, in the fixed frame; measures: moving -> fixed.
        regions: label map (b, 1, *s) of the moving shape as an Image, for pre-defined regularizers.
        landmarks: for Problem's landmark term.
    """

    fixed: S
    moving: S
    initial: Transform = field(default_factory=Identity)
    regions: Image | None = None
    landmarks: Correspondence | None = None

    def __post_init__(self) -> None:
        a, b = self.fixed.kind, self.moving.kind
        if a != b:
            raise ConfigError(f"fixed is {a[0]} on {a[1]} but moving is {b[0]} on {b[1]}; bring them together first")

    def scaled(self, factor: float) -> Pair[S]:
        """Both shapes at the resolution that ``factor`` gives the fixed one."""
        return replace(self, fixed=self.fixed.scaled(factor), moving=self.moving.level(factor, self.fixed))

    @property
    def source(self) -> S:
        """The shape that is shot (Shape.source)."""
        return self.moving.source(self.fixed, self.initial)

    def after(self, transform: Transform) -> Pair[S]:
        """The pair seen through ``transform`` as the new initial map."""
        return replace(self, initial=transform)

    def whole(self, transform: Transform) -> Transform:
        """The initial map and then ``transform``, as one."""
        return self.moving.composed(self.initial, transform)

    def moved_by(self, transform: Transform) -> S:
        """The moving shape, by the initial map and then by ``transform``, where the fixed one is."""
        return self.moving.moved_onto(self.fixed, self.whole(transform))


def bounds(grids: Sequence[Grid]) -> str:
    """The world boxes of grids, for messages."""
    return " and ".join(f"[{', '.join(f'{a:.0f}..{b:.0f}' for a, b in g.corners().T)}] mm" for g in grids)


def overlap_fraction(pair: Pair[Image]) -> float:
    """Part of the fixed image's voxels that the initial map takes into the moving image's field of view."""
    x = pair.fixed.grid.identity(pair.fixed.data.double())
    y = pair.moving.locate(pair.initial(x), pair.fixed.grid)
    far = torch.tensor(pair.moving.grid.extent, dtype=y.dtype, device=y.device).view(1, -1, *(1,) * (y.ndim - 2))
    margin = 1e-6
    return float(((y >= -margin) & (y <= far + margin)).all(1).double().mean())
