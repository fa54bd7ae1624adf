"""Images: intensities on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from rdmm.kernels.available import is_on_host
from rdmm.spatial.gaussian import shrink
from rdmm.spatial.grid import Grid, apply_matrix, frame_change, require_one_dimension
from rdmm.spatial.ops import Mode, resize, sample
from rdmm.spatial.placement import require_same_plane
from rdmm.spatial.transform import Transform, composed
from rdmm.types import InputError, Tensor


@dataclass(frozen=True)
class Part:
    """Channels of an image that are compared together, apart from the others.

    Args:
        channels: how many.
        weight: weight of their comparison.
        is_labels: whether they are the codes of labels (``spatial.label_codes``).
    """

    channels: int
    weight: float = 1.0
    is_labels: bool = False


@dataclass(frozen=True, eq=False)
class Image:
    """Intensities or labels on a grid, with an optional mask.

    Args:
        data: (b, c, *s); labels (b, 1, *s) are whole numbers of any type, and int64 where rdmm has read them.
        grid: the grid of the last axes.
        mask: (b, 1, *s) or (b, c, *s), weight of each voxel in a similarity, in [0, 1]; None: 1 everywhere.
        parts: how the channels belong together, in their order; (): they are one part. All channels of a part have one mask.

    Raises:
        InputError: data or mask are no tensors of the grid's shape.
    """

    data: Tensor
    grid: Grid
    mask: Tensor | None = None
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.grid, Grid):
            raise InputError(f"an image's grid is an rdmm.Grid, not a {type(self.grid).__name__}; make one: rdmm.Grid(shape, affine)")
        for name, x in (("data", self.data), ("mask", self.mask)):
            if not isinstance(x, Tensor) and (x is not None or name == "data"):
                raise InputError(f"an image's {name} is a tensor (b, c, *grid.shape), not a {type(x).__name__}; use torch.as_tensor")
            if x is not None and tuple(x.shape[2:]) != self.grid.shape:
                raise InputError(f"an image's {name} is (b, c, *grid.shape); got {tuple(x.shape)} on a grid of {self.grid.shape}")

    def __repr__(self) -> str:
        channels = "" if self.data.shape[1] == 1 else f"{self.data.shape[1]} channels, "
        mask = "" if self.mask is None else ", with a mask"
        return f"Image({channels}{str(self.data.dtype).removeprefix('torch.')}, {self.grid!r}{mask})"

    def moved_by(self, transform: Transform, onto: Grid | None = None, *, mode: Mode = "linear", outside: float | None = None) -> Image:
        """Pull-back I ∘ T: the values of the image at T(x) for each voxel x of ``onto`` (default: the image's own grid).

        Args:
            transform: in domain units of ``onto``'s frame.
            outside: value outside the field of view (Grid.contains). None: that of the nearest edge voxel, which keeps the similarity
                differentiable, or 0 for labels (``mode="nearest"``). The mask is 0 there.
        """
        onto = onto or self.grid
        floats = self.data if self.data.is_floating_point() else torch.empty(0, dtype=torch.float32, device=self.data.device)
        points = self.locate(transform(onto.identity(floats)), onto)
        mask = None if self.mask is None else sample(self.mask, points.detach(), self.grid, mode=mode, outside="zero")
        if outside is None:
            edge = sample(self.data, points, self.grid, mode=mode, outside="edge" if mode == "linear" else "zero")
            return replace(self, data=edge, grid=onto, mask=mask)
        data = sample(self.data, points, self.grid, mode=mode)
        return replace(self, data=torch.where(self.grid.contains(points), data, data.new_tensor(outside)), grid=onto, mask=mask)

    @property
    def kind(self) -> tuple[torch.dtype, str]:
        return self.data.dtype, self.data.device.type

    def moved_onto(self, fixed: Image, transform: Transform) -> Image:
        return self.moved_by(transform, fixed.grid)

    def resampled_like(self, factor: float, fixed: Image) -> Image:
        return self.scaled(min(1.0, factor * min(self.grid.voxel) / min(fixed.grid.voxel)))

    def source(self, fixed: Image, initial: Transform) -> Image:
        """The image on whose grid the geodesic is shot: the fixed one, onto which the initial map brings the moving image."""
        return fixed

    def locate(self, points: Tensor, frame: Grid) -> Tensor:
        """Convert points (b, d, *t) from domain units of ``frame`` to domain units of this image's grid.

        Raises:
            InputError: one is 2D and the other 3D, or both are single slices, of different planes.
        """
        require_one_dimension({"the image": self.grid.ndim, "the grid": frame.ndim})
        require_same_plane(self.grid.placement, frame.placement)
        if self.grid.same_frame(frame):
            return points
        return apply_matrix(frame_change(frame, self.grid, points.device), points)

    def scaled(self, factor: float) -> Image:
        """The image on a coarser grid of the same frame: see Grid.scaled."""
        return self.resampled(self.grid.scaled(factor))

    def resampled(self, grid: Grid) -> Image:
        """The image on another grid of the same frame, with a low-pass along the axes that become coarser.

        Values outside the mask do not count: see ``inpainted``.
        """
        image = self.inpainted()
        if grid == self.grid:
            return image
        data, mask = (None if x is None else resize(shrink(x, self.grid, grid), grid.shape) for x in (image.data, image.mask))
        assert data is not None
        return replace(self, data=data, grid=grid, mask=None if mask is None else mask.clamp(0, 1))  # the low-pass overshoots

    def inpainted(self) -> Image:
        """The image with the values outside its mask replaced by a continuation of those inside: by means over larger and larger blocks.

        A low-pass, an interpolation or a histogram of it sees the inside alone, so what lies outside the mask has no influence.
        """
        if self.mask is None or _are_all_positive(self.mask):
            return self
        inside = (self.mask > 0).to(self.data).expand(len(self.data), *self.mask.shape[1:])
        return replace(self, data=_inpaint(torch.where(inside > 0, self.data, 0), inside))

    def canonical(self) -> Image:
        """The same image with its axes in the order of Grid.canonical."""
        grid = self.grid.canonical()
        if grid == self.grid:
            return self
        mask = None if self.mask is None else self.grid.restored(self.mask, grid)
        return replace(self, data=self.grid.restored(self.data, grid), grid=grid, mask=mask)

    def composed(self, first: Transform, then: Transform) -> Transform:
        """The transform of moving by ``first`` and then by ``then``: images pull back, first ∘ then."""
        return composed(then, first)

    def to_float32(self) -> Image:
        """The image in float32 on the CPU, as if read from a file."""
        return replace(self, data=self.data.cpu().float(), mask=None if self.mask is None else self.mask.cpu().float())

    def to(self, device: torch.device) -> Image:
        return replace(self, data=self.data.to(device), mask=None if self.mask is None else self.mask.to(device))

    def mass(self) -> Tensor:
        """Mass (*s) of the first part, float64: its mean intensity above the minimum, or below the maximum of an image on bright ground,
        in the mask; of codes of labels, 1 in every label."""
        first = self.split()[0]
        data = first.data[0].double()
        mass = data.square().sum(0) if self.parts and self.parts[0].is_labels else data.mean(0)
        mass = mass.max() - mass if _has_bright_ground(mass) else mass - mass.min()
        return mass if first.mask is None else mass * first.mask[0, 0]

    def split(self) -> list[Image]:
        """One image for each part."""
        images, first = [], 0
        for part in self.parts or (Part(self.data.shape[1]),):
            end = first + part.channels
            mask = self.mask if self.mask is None or self.mask.shape[1] == 1 else self.mask[:, first : first + 1]
            images.append(Image(self.data[:, first:end], self.grid, mask))
            first = end
        return images


def _has_bright_ground(x: Tensor) -> bool:
    """Whether the voxels at the faces of x (*s) are mostly nearer to its high intensities than to its low ones."""
    faces = torch.cat([x.select(axis, end).flatten() for axis in range(x.ndim) for end in (0, -1)])
    low, high = np.percentile(x.cpu().numpy(), [1, 99])
    return float(faces.median()) > (low + high) / 2


def joined(images: Sequence[Image], parts: Sequence[Part]) -> Image:
    """One image of all channels of ``images`` on one grid, each of which becomes a part: the inverse of ``Image.split``."""
    mask = None
    if any(x.mask is not None for x in images):
        masks = (torch.ones_like(x.data[:, :1]) if x.mask is None else x.mask for x in images)
        mask = torch.cat([m.expand_as(x.data) for m, x in zip(masks, images, strict=True)], 1)
    return Image(torch.cat([x.data for x in images], 1), images[0].grid, mask, tuple(parts))


def _are_all_positive(x: Tensor) -> bool:
    """Whether there is nothing to fill in; False on another device than the CPU, where filling in nothing costs less than asking."""
    return is_on_host(x) and bool((x > 0).all())


def _inpaint(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, c, *s) where ``weight`` (b, 1, *s) is 1. Elsewhere, where x is 0: means over the smallest blocks that hold such a voxel.

    The pull-push algorithm (Gortler, Grzeszczuk, Szeliski, Cohen, SIGGRAPH 1996) with blocks of 2, 4, 8... voxels. It is linear in voxels.
    """
    shape = x.shape[2:]
    mean = x / weight.clamp_min(torch.finfo(x.dtype).tiny)
    if _are_all_positive(weight) or max(shape) == 1:
        return mean
    pool = F.avg_pool3d if len(shape) == 3 else F.avg_pool2d
    block = [min(2, n) for n in shape]
    coarse = _inpaint(*(pool(y, block, ceil_mode=True, count_include_pad=False) for y in (x, weight)))
    return torch.where(weight > 0, mean, resize(coarse, shape))
