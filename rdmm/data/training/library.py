"""Read the images of a data set onto one common grid, so that they can be batched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from rdmm.data.synthetic.label_images import intensities_of
from rdmm.data.training.sources import Item
from rdmm.data.training.store import Store, content_of
from rdmm.data.training.survey import read_item
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Affine
from rdmm.types import ConfigError, InputError

log = logging.getLogger(__name__)

CenterMode = Literal["world", "image", "mass"]

LabeledImage = tuple[Image, Image | None]
"""An image and its label map, if it has one."""


@dataclass(frozen=True)
class CommonGrid:
    """The grid to which all images of a data set are resampled. Its axes are those of the first image, in R, A, S order.

    Args:
        shape: voxels along each axis.
        spacing: voxel size along each axis, mm; None: the grid covers the first image.
        centre: the point of each image that is moved to the center of the grid: the center of the ``image``, its center of ``mass``,
            or none (``world``: images keep the positions of their files).
    """

    shape: Sequence[int]
    spacing: Sequence[float] | None = None
    centre: CenterMode = "world"

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or min(self.shape) < 8:
            raise ConfigError(f"shape must be 2 or 3 sizes of at least 8 voxels, e.g. [96,96,96]; got {list(self.shape)}")
        if self.spacing is not None and (len(self.spacing) != len(self.shape) or min(self.spacing) <= 0):
            raise ConfigError(f"data.spacing must be {len(self.shape)} lengths in mm, one per axis; got {list(self.spacing)}")
        if self.centre not in get_args(CenterMode):
            raise ConfigError(f"data.centre must be one of {', '.join(get_args(CenterMode))}, not {self.centre!r}")

    def grid(self, first: Image) -> Grid:
        """The common grid, with the center and the axes of the image ``first``."""
        if first.grid.ndim != len(self.shape):
            raise ConfigError(
                f"shape={list(self.shape)} has {len(self.shape)} axes but the images are {first.grid.ndim}D {first.grid.shape}; "
                f"give {first.grid.ndim} sizes"
            )
        spacing = self.spacing or [h * (n - 1) / (k - 1) for h, n, k in zip(first.grid.voxel, first.grid.shape, self.shape, strict=True)]
        affine = np.diag([*spacing, 1.0])
        axes = first.grid.directions
        affine[:-1, :-1] = axes * np.asarray(spacing)
        affine[:-1, -1] = grid_center(first.grid) - affine[:-1, :-1] @ ((np.asarray(self.shape) - 1) / 2)
        return Grid(tuple(self.shape), affine)

    def resample(self, grid: Grid, image: Image, labels: Image | None) -> LabeledImage:
        """Resample an image and its labels to the common grid. If the grid is coarser, the image is low-pass filtered first."""
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
    """The center of a grid, world millimeters."""
    return np.asarray(grid.corners().mean(0))


def _center_of_mass(image: Image) -> np.ndarray:
    """The center of mass of the intensities above their minimum, world millimeters."""
    x = image.grid.to_world(image.grid.identity(image.data.double()))[0].flatten(1)
    mass = image.data[0, 0].double().flatten()
    mass = mass - mass.min()
    return np.asarray(((x * mass).sum(1) / mass.sum().clamp_min(1e-12)).numpy())


@dataclass(eq=False)
class ImageCache:
    """Reads items onto the common grid and keeps them, in memory or in a folder, so each file is read once.

    Args:
        items: the items from which the common grid is chosen.
        common: the common grid.
        prepare: applied to each image, with its file's name; normalizes the intensities.
        skip_bad: leave out files that cannot be read and log a warning, instead of raising InputError.
        unreadable: error messages of the items left out so far, by the item's name.
        contents: checksums of the items' files (survey), by name; for ``folder``.
        folder: where prepared images are kept (Store); None: in memory.
    """

    items: Sequence[Item]
    common: CommonGrid
    prepare: Callable[[Image, str], Image]
    skip_bad: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None
    _read: dict[str, LabeledImage] = field(default_factory=dict)

    @cached_property
    def grid(self) -> Grid:
        """The common grid. It is set by the first item that can be read."""
        for item in (i for i in self.items if i.name not in self.unreadable):
            try:
                return self.common.grid(_with_image(*read_item(item))[0])
            except InputError as error:
                self._leave_out(item, error)
        raise InputError(f"none of the {len(self.items)} images can be read; the first: {next(iter(self.unreadable.values()))}")

    def __call__(self, item: Item) -> LabeledImage | None:
        """Image and labels of an item on the common grid; None if it is left out."""
        if item.name in self.unreadable:
            return None
        if item.name in self._read:
            return self._read[item.name]
        try:
            if self.folder is not None:
                return self._stored(item)
            self._read[item.name] = self._prepare(item, *read_item(item))
        except InputError as error:
            self._leave_out(item, error)
            return None
        return self._read[item.name]

    @cached_property
    def _store(self) -> Store:
        assert self.folder is not None
        return Store(Path(self.folder), self.grid, f"{self.common} {self.prepare}")

    def _stored(self, item: Item) -> LabeledImage:
        """An item from the folder of prepared images; it is put there first if need be."""
        found = self._store.read(self.contents[item.name])
        if found is None:
            files = read_item(item)
            found = self._prepare(item, *files)
            self._store.write(content_of(files), *found)  # not the survey's checksum: the file may have changed since
        return found

    def _prepare(self, item: Item, image: Image | None, labels: Image | None) -> LabeledImage:
        """The image and the labels of an item's files on the common grid, with normalized intensities."""
        moved, moved_labels = self.common.resample(self.grid, *_with_image(image, labels))
        return self.prepare(moved, str(item.image or item.labels)), moved_labels

    def _leave_out(self, item: Item, error: InputError) -> None:
        if not self.skip_bad:
            raise InputError(f"{error} (use data.skip_bad=true to leave such files out)") from error
        if item.name not in self.unreadable:
            self.unreadable[item.name] = str(error)
            log.warning("file left out (%d so far): %s", len(self.unreadable), error)


def _with_image(image: Image | None, labels: Image | None) -> LabeledImage:
    """An image and its labels. Without an image, one is made from the labels."""
    if image is None:
        assert labels is not None
        return intensities_of(labels), labels
    return image, labels


def stack(images: Sequence[Image]) -> Image:
    """Stack images of one grid to a batch."""
    return Image(torch.cat([i.data for i in images]), images[0].grid)
