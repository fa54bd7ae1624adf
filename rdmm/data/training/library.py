"""Images of a data set on one grid, so that they make batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch

from rdmm import io
from rdmm.data.synthetic.label_images import intensities_of
from rdmm.data.training.sources import Item
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Affine
from rdmm.types import ConfigError, InputError

log = logging.getLogger(__name__)

CenterMode = Literal["world", "image", "mass"]


LabeledImage = tuple[Image, Image | None]


@dataclass(frozen=True)
class CommonGrid:
    """``shape`` voxels of ``spacing`` mm, in axes as near to R, A, S as the images have them.

    Args:
        spacing: edges of a voxel in mm; None: so that the first image fits.
        centre: what of each image is laid on the middle of the grid: nothing (``world``: the files' own positions, relative to the
            first image's), the ``image``'s middle, or its centre of ``mass``.
    """

    shape: Sequence[int]
    spacing: Sequence[float] | None = None
    centre: CenterMode = "world"

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or min(self.shape) < 8:
            raise ConfigError(f"shape must be 2 or 3 sizes of 8 voxels and more, not {list(self.shape)}")
        if self.spacing is not None and (len(self.spacing) != len(self.shape) or min(self.spacing) <= 0):
            raise ConfigError(f"data.spacing must be {len(self.shape)} lengths in mm, one per axis, not {list(self.spacing)}")
        if self.centre not in get_args(CenterMode):
            raise ConfigError(f"data.centre must be one of {', '.join(get_args(CenterMode))}, not {self.centre!r}")

    def grid(self, first: Image) -> Grid:
        """The common grid, around the middle of ``first``."""
        if first.grid.ndim != len(self.shape):
            raise ConfigError(
                f"shape={list(self.shape)} has {len(self.shape)} axes but the images are {first.grid.ndim}D {first.grid.shape}"
            )
        spacing = self.spacing or [h * (n - 1) / (k - 1) for h, n, k in zip(first.grid.voxel, first.grid.shape, self.shape, strict=True)]
        affine = np.diag([*spacing, 1.0])
        axes = first.grid.directions
        affine[:-1, :-1] = axes * np.asarray(spacing)
        affine[:-1, -1] = grid_center(first.grid) - affine[:-1, :-1] @ ((np.asarray(self.shape) - 1) / 2)
        return Grid(tuple(self.shape), affine)

    def resample(self, grid: Grid, image: Image, labels: Image | None) -> LabeledImage:
        """An image (after a low-pass, where the grid is coarser) and its labels on the common grid."""
        shift = np.eye(grid.ndim + 1)
        if self.centre != "world":
            centre = grid_center(image.grid) if self.centre == "image" else _center_of_mass(image)
            shift[:-1, -1] = centre - grid_center(grid)
        transform = Affine.from_world(shift, grid)
        level = image.scaled(min(1.0, min(image.grid.voxel) / min(grid.voxel)))
        same = level.grid == grid and self.centre == "world"
        moved = level if same else level.moved_by(transform, grid)
        return moved, None if labels is None else labels.moved_by(transform, grid, mode="nearest")


def grid_center(grid: Grid) -> np.ndarray:
    """World millimetres of the middle of a grid."""
    return np.asarray(grid.corners().mean(0))


def _center_of_mass(image: Image) -> np.ndarray:
    x = image.grid.to_world(image.grid.identity(image.data.double()))[0].flatten(1)
    mass = image.data[0, 0].double().flatten()
    mass = mass - mass.min()
    return np.asarray(((x * mass).sum(1) / mass.sum().clamp_min(1e-12)).numpy())


@dataclass(eq=False)
class ImageCache:
    """Items read onto the common grid, each once.

    Args:
        prepare: what is done to the images (intensities), with the file's name.
        skip_bad: leave out files that cannot be read, naming them, instead of ending there.
    """

    items: Sequence[Item]
    common: CommonGrid
    prepare: Callable[[Image, str], Image]
    skip_bad: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)
    _read: dict[str, LabeledImage] = field(default_factory=dict)

    @cached_property
    def grid(self) -> Grid:
        """The common grid; it takes the first item that can be read."""
        for item in self.items:
            try:
                return self.common.grid(self._read_files(item)[0])
            except InputError as error:
                self._leave_out(item, error)
        raise InputError(f"none of the {len(self.items)} images can be read; the first: {next(iter(self.unreadable.values()))}")

    def __call__(self, item: Item) -> LabeledImage | None:
        """Image and labels on the common grid; None for one that is left out."""
        if item.name in self.unreadable:
            return None
        if item.name not in self._read:
            grid = self.grid
            try:
                image, labels = self._read_files(item)
                moved, marked = self.common.resample(grid, image, labels)
                self._read[item.name] = (self.prepare(moved, str(item.image or item.labels)), marked)
            except InputError as error:
                self._leave_out(item, error)
                return None
        return self._read[item.name]

    def _leave_out(self, item: Item, error: InputError) -> None:
        if not self.skip_bad:
            raise InputError(f"{error} (data.skip_bad=true leaves such files out)") from error
        if item.name not in self.unreadable:
            self.unreadable[item.name] = str(error)
            log.warning("left out, %d so far: %s", len(self.unreadable), error)

    @staticmethod
    def _read_files(item: Item) -> LabeledImage:
        if item.image is None:
            assert item.labels is not None
            labels = io.read_labels(item.labels).canonical()
            return intensities_of(labels), labels
        image = io.read_image(item.image)
        marked = None if item.labels is None else io.read_labels(item.labels, image).canonical()
        return image.canonical(), marked


def stack(images: Sequence[Image]) -> Image:
    """Images of one grid as a batch."""
    return Image(torch.cat([i.data for i in images]), images[0].grid)
