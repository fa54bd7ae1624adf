"""Images and label maps, moved by transforms onto the grid of another image."""

from __future__ import annotations

import logging
import os

import torch

from rdmm import io
from rdmm.io.exchange import Given, Image, image_source, name_of, read_given_grid
from rdmm.io.formats.choice import check_image_output
from rdmm.io.formats.stack import Stack, cast, choose_type, write_stack
from rdmm.io.maps import Maps, describe_maps, grids_of_maps, read_inverse_maps, read_maps
from rdmm.mapping.reorientation import turned
from rdmm.mapping.transforms import sparse_points, warn_outside
from rdmm.spatial import image as spatial
from rdmm.spatial.grid import Grid, require_one_dimension
from rdmm.spatial.interpolation import FOR_LABELS, INTERPOLATIONS, Interpolation, interpolate
from rdmm.spatial.label_map import is_label_map, is_whole
from rdmm.spatial.transform import framed
from rdmm.types import ConfigError, InputError, Tensor, nearest, option

log = logging.getLogger(__name__)


def apply(
    image: Given,
    transforms: Maps,
    reference: Given | Grid | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    labels: bool = False,
    interpolation: str | None = None,
    dtype: str | None = None,
    reorient: bool = False,
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
        labels: the image is a label map: nearest neighbor; the numbers of labels stay exact.
        interpolation: "linear", "nearest", "bspline", "sinc" or "generic-label" (the label with the largest linear weight). None: linear;
            nearest for labels, and for what looks like a label map, which the log says.
        dtype: type of the result, such as "float32"; integers are rounded to the nearest. None: the type of the image, or a wider one
            where that cannot hold the result.
        reorient: also turn the vectors (d numbers a voxel) or symmetric tensors (6) that the image holds, by the rotation in the local
            Jacobian of the map (finite strain). Those of ITK (five axes, or .nrrd, .mha) are along L, P, S; those of FSL (four axes) along
            the voxel axes, tensors as xx, xy, xz, yy, yz, zz.
        invert: apply the inverse of all transforms together; of a whole run by its InverseWarp.
        default_value: value outside the image's field of view.
        volume: number of the only volume to move, from 0; None: all.
        overwrite: replace an existing file.

    Raises:
        ConfigError: a default value that is no label; nothing to ``reorient``; no such interpolation or type, or one that would mix labels.
        InputError: a file cannot be used, or the dimensions differ.
        DivergenceError: with ``invert``, the transforms fold, so that they have no inverse.
        OutputError: the file exists, or cannot be written; or the result does not fit ``dtype``.
    """
    path = None if out is None else check_image_output(out, overwrite=overwrite)
    fixed_grid, moving_grid = grids_of_maps(transforms)
    source, name = image_source(image, "image", like=moving_grid), describe_maps(transforms)
    stack = io.read_stack(source, volume)
    mode = _choose_interpolation(interpolation, stack, labels=labels)
    _warn_of_vectors(stack, reorient=reorient)
    labels = labels or mode == "generic-label"
    if labels:
        _require_label(default_value)
    kept, widen = choose_type(dtype, stack, labels=labels)
    grid = read_given_grid(_required(reference, fixed_grid), "reference")
    transform = read_inverse_maps(transforms) if invert else read_maps(transforms)
    require_one_dimension({name_of(image, "image"): stack.grid.ndim, name_of(reference, "reference"): grid.ndim, name: transform.ndim})
    warn_outside(transform, sparse_points(grid), "reference")
    volumes = stack.images(labels=labels or (mode == "nearest" and isinstance(default_value, int) and is_whole(stack.array)))
    total = framed(transform, grid)
    points = volumes[0].locate(total(grid.identity(torch.zeros(1, dtype=torch.float64))), grid)
    values = torch.cat([_moved(v, points, mode, default_value) for v in volumes], 1)
    if reorient:
        values = torch.where(stack.grid.contains(points), turned(values, total, grid, stack), values)
    moved = Image(cast(path or "the result", values, kept, widen=widen), grid)
    if path is not None:
        write_stack(path, moved.data, grid, stack)
    return moved


def _required(reference: Given | Grid | None, fixed_grid: Grid | None) -> Given | Grid:
    """The reference; without one the fixed grid of a registration."""
    if reference is None and fixed_grid is None:
        raise InputError("reference is missing: give the image whose grid the result has, such as the fixed image")
    return fixed_grid if reference is None else reference


def _choose_interpolation(wanted: str | None, stack: Stack, *, labels: bool) -> Interpolation:
    """The interpolation that was asked for; otherwise nearest for what looks like labels, which the log says, and linear for all else.

    Raises:
        ConfigError: there is no such interpolation, or it would mix the numbers of labels.
    """
    if wanted is not None and wanted not in INTERPOLATIONS:
        raise ConfigError(
            f"{option('interpolation', wanted)}: there is no such interpolation{nearest(wanted, INTERPOLATIONS)}; there are"
            f" {', '.join(INTERPOLATIONS)}"
        )
    if labels and wanted not in (None, *FOR_LABELS):
        raise ConfigError(
            f"{option('interpolation', wanted)} mixes the numbers of labels; with {option('labels')} it is {' or '.join(FOR_LABELS)}"
        )
    if wanted is not None:
        return wanted
    if labels:
        return "nearest"
    if stack.is_vector or not is_label_map(stack.array[..., 0]):
        return "linear"
    log.warning(
        "%s: looks like a label map (whole numbers in pieces): moved by nearest neighbor, as with %s; pass %s if it is an image",
        stack.name,
        option("labels"),
        option("interpolation", "linear"),
    )
    return "nearest"


def _warn_of_vectors(stack: Stack, *, reorient: bool) -> None:
    """Say that vectors are not turned, or by which convention they are."""
    count, d = stack.array.shape[-1], stack.grid.ndim
    if stack.is_vector and not stack.storage.is_color and count in (d, 6) and not reorient:
        log.warning("%s: its vectors or tensors are moved, but not turned: pass %s", stack.name, option("reorient"))
    if reorient and not stack.is_vector and count in (d, 6):
        log.warning("%s: %d volumes, read as FSL's vectors or tensors (xx, xy, xz, yy, yz, zz) along the voxel axes", stack.name, count)


def _require_label(default_value: float) -> None:
    if not (isinstance(default_value, int) and -(2**63) <= default_value < 2**63):
        raise ConfigError(
            f"{option('default_value', str(default_value))}: with {option('labels')} it is a whole number of 64 bits, such as 0"
        )


def _moved(image: spatial.Image, points: Tensor, mode: Interpolation, outside: float) -> Tensor:
    """The values (1, 1, *t) of an image (1, 1, *s) at points (1, d, *t) of its domain. Voxels with mask 0, which have no value, have no
    weight in a linear interpolation; the result is NaN where one of them is the nearest voxel."""
    inside = image.grid.contains(points)
    if image.mask is None:
        data = interpolate(image.data, points, image.grid, mode)
        return torch.where(inside, data, data.new_tensor(outside))
    weight = interpolate(image.mask, points, image.grid, "linear")
    known = interpolate(image.mask, points, image.grid, "nearest") > 0
    source = image.data * image.mask if mode == "linear" else image.inpainted().data
    data = interpolate(source, points, image.grid, mode) / (weight.clamp_min(1e-6) if mode == "linear" else 1)
    return torch.where(inside, torch.where(known, data, torch.nan), outside)
