"""Images and label maps, moved by transforms onto the grid of another image."""

from __future__ import annotations

import os

import torch

from rdmm import io
from rdmm.io.exchange import Given, Image, image_source, name_of, read_given_grid
from rdmm.io.files import check_output, require_ending
from rdmm.io.images import image_channels, require_no_volume
from rdmm.io.maps import Maps, describe_maps, grids_of_maps, read_maps
from rdmm.io.nifti import ENDINGS, Source
from rdmm.mapping.transforms import invert_in_world, sparse_points, warn_outside
from rdmm.spatial import image as spatial
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid, require_one_dimension
from rdmm.spatial.transform import Transform, framed
from rdmm.types import ConfigError, InputError, Tensor, option


def apply(
    image: Given,
    transforms: Maps,
    reference: Given | Grid | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    labels: bool = False,
    invert: bool = False,
    default_value: float = 0,
    volume: int | None = None,
    overwrite: bool = False,
) -> Image:
    """Resample an image, or a label map, onto the grid of ``reference``; each volume of a 4D file is a channel of the result.

    Args:
        image: a path, an image in memory as for ``rdmm.register``, or an array on the moving grid of a ``Registration``.
        transforms: one, or a list of which a point goes through the first one first (images: the last is applied first, as in ANTs):
            files, a ``Registration``, matrices (d+1, d+1) of world millimeters, or transforms of world millimeters, fixed -> moving.
        reference: an image, or a Grid; None: the fixed grid of the ``Registration`` that was given as ``transforms``.
        out: a file to write, too.
        labels: nearest neighbor; the numbers of labels stay exact.
        invert: apply the inverse of all transforms together.
        default_value: value outside the image's field of view.
        volume: number of the only volume to move, from 0; None: all.
        overwrite: replace an existing file.

    Raises:
        ConfigError: a default value that is no label.
        InputError: a file cannot be used, or the dimensions differ.
        DivergenceError: with ``invert``, the transforms fold, so that they have no inverse.
        OutputError: the file exists, or cannot be written.
    """
    if labels and not (isinstance(default_value, int) and -(2**63) <= default_value < 2**63):
        raise ConfigError(
            f"{option('default_value', str(default_value))}: with {option('labels')} it is a whole number of 64 bits, such as 0"
        )
    path = None if out is None else check_output(require_ending(out, ENDINGS, "an image"), overwrite=overwrite)
    fixed_grid, moving_grid = grids_of_maps(transforms)
    source, name = image_source(image, "image", like=moving_grid), describe_maps(transforms)
    volumes = _read_channels(source, volume, labels=labels)
    grid = read_given_grid(_required(reference, fixed_grid), "reference")
    transform = read_maps(transforms)
    require_one_dimension({name_of(image, "image"): volumes[0].grid.ndim, name_of(reference, "reference"): grid.ndim, name: transform.ndim})
    if invert:
        transform = invert_in_world(transform, name)
    warn_outside(transform, sparse_points(grid), "reference")
    total = framed(transform, grid)
    moved = Image(torch.cat([_moved(v, total, grid, "nearest" if labels else "linear", default_value) for v in volumes], 1), grid)
    if path is not None:
        moved.save(path, overwrite=True)
    return moved


def _required(reference: Given | Grid | None, fixed_grid: Grid | None) -> Given | Grid:
    """The reference; without one the fixed grid of a registration."""
    if reference is None and fixed_grid is None:
        raise InputError("reference is missing: give the image whose grid the result has, such as the fixed image")
    return fixed_grid if reference is None else reference


def _read_channels(source: Source | spatial.Image, volume: int | None, *, labels: bool) -> list[spatial.Image]:
    """The volumes of a file, or the channels of an image in memory, (1, 1, *s) each."""
    if not isinstance(source, spatial.Image):
        return io.read_volumes(source, volume, labels=labels)
    require_no_volume(volume, "image")
    return image_channels(source, "image", labels=labels)


def _moved(image: spatial.Image, transform: Transform, grid: Grid, mode: ops.Mode, outside: float) -> Tensor:
    """The image (1, 1, *s) moved onto ``grid``. Voxels with mask 0, which have no value, have no weight in the interpolation; the result is
    NaN where one of them is the nearest voxel."""
    moved = image.moved_by(transform, grid, mode=mode, outside=outside)
    if image.mask is None:
        return moved.data
    mask = spatial.Image(image.mask, image.grid)
    weight = mask.moved_by(transform, grid).data
    nearest = mask.moved_by(transform, grid, mode="nearest", outside=2.0).data  # 2 outside the field of view
    return torch.where(nearest == 1, moved.data / weight, torch.where(nearest == 0, torch.nan, outside))
