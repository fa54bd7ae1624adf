"""Images, label maps and masks: read with every value checked, written atomically."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from rdmm.io.files import finite_float32, require_finite_result
from rdmm.io.formats.choice import read_raw, write_voxels
from rdmm.io.formats.header import Raw
from rdmm.io.in_memory import image_array, mask_array
from rdmm.io.nifti import Source, log
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.ops import sample
from rdmm.spatial.placement import require_same_plane
from rdmm.types import ConfigError, InputError, OutputError, Tensor, counted, option

NanPolicy = Literal["error", "zero", "mask"]
"""What to do with NaN and Inf: raise InputError, set them to 0, or mask them out."""


MIN_VOXELS = 4
"""Fewest voxels along an axis of an image: as many as the coarsest level of the pyramid keeps (Grid.scaled). Not measured."""


def as_volumes(raw: Raw) -> tuple[np.ndarray, Grid]:
    """The volumes of a file, (*s, n) with n = 1 for an image without a fourth axis, and their 2D or 3D grid.

    Raises:
        InputError: another number of axes, or too few voxels.
    """
    path, array = raw.header.path, raw.array
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 4 or array.ndim < 2:
        raise InputError(f"{path}: {array.ndim} dimensions {array.shape}; a 2D or 3D image is expected")
    grid, plane = raw.header.grid(), raw.header.placement.plane
    if min(grid.shape) < MIN_VOXELS:
        raise InputError(f"{path}: shape {array.shape}: at least {MIN_VOXELS} voxels along each axis are needed")
    if min(array.ndim, 3) > grid.ndim:
        log.warning("%s: a single slice %s, %s: treated as 2D in its plane", path, array.shape, plane)
    return array.reshape(*grid.shape, -1), grid


def choose_volume(path: Path, volumes: np.ndarray, volume: int | None, *, has_options: bool) -> np.ndarray:
    """The volume (*s) of (*s, n) with the number ``volume``; None: the only one. ``has_options``: the user could type --volume."""
    n = volumes.shape[-1]
    if volume is None and n > 1:
        advice = f"choose {option('volume', 'K')}, 0 to {n - 1}" if has_options else "write one of them to a file of its own"
        raise InputError(f"{path}: {n} volumes (4D); {advice}")
    if volume is not None and not 0 <= volume < n:
        raise InputError(f"{path}: {option('volume', str(volume))}: there is no such volume; volumes go from 0 to {n - 1}")
    return np.asarray(volumes[..., volume or 0])


def replace_nan(path: str | Path, array: np.ndarray, policy: NanPolicy, *, has_options: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The array with NaN and Inf set to 0, and for the policy ``mask`` the voxels that were finite (otherwise None)."""
    if array.dtype.kind != "f":
        return array, None
    good = np.abs(array) <= np.finfo(np.float32).max  # False for NaN and Inf too
    bad = int(good.size - good.sum())
    if bad == 0:
        return array, None
    where = np.unravel_index(int(np.argmin(good)), array.shape)
    if bad == good.size:
        raise InputError(f"{path}: no finite voxel: all are NaN or Inf")
    said = f"{counted(bad, 'voxel')} {'is' if bad == 1 else 'are'} NaN or Inf"
    if policy == "error":
        advice = f"correct them, or pass {option('nan', 'zero')} or {option('nan', 'mask')}" if has_options else "correct them first"
        raise InputError(f"{path}: {said} (first at {tuple(map(int, where))}); {advice}")
    log.warning("%s: %s: %s", path, said, "set to 0" if policy == "zero" else "masked out")
    return np.where(good, array, 0), good if policy == "mask" else None


def read_image(
    source: Source | Image,
    *,
    name: str = "the image",
    nan: NanPolicy = "error",
    volume: int | None = None,
    strict: bool = False,
    has_options: bool = False,
) -> Image:
    """Read an image as float32 on the CPU: (1, 1, *s) of a file, (1, c, *s) of an Image with channels.

    Args:
        source: a path, a nibabel image, or an Image, which is checked in the same way.
        name: what messages call an Image.
        nan: what to do with NaN and Inf: ``error``, ``zero``, or ``mask`` (excluded from the similarity).
        volume: number of the volume to read from a 4D file, from 0.
        strict: refuse a file without s-form and q-form.
        has_options: the user can choose ``nan`` and ``volume``, so messages may advise it.

    Raises:
        InputError: the file is damaged or ambiguous; docs/faults.md lists the faults (1 to 13 and 17 to 28).
        ConfigError: ``nan`` is not one of the three.
    """
    if not isinstance(nan, str) or nan not in get_args(NanPolicy):
        raise ConfigError(f"nan must be one of {', '.join(get_args(NanPolicy))}, not {nan!r}")
    if isinstance(source, Image):
        require_no_volume(volume, name)
        return _checked_image(source, name, nan, has_options=has_options)
    raw = read_raw(source, strict=strict)
    volumes, grid = as_volumes(raw)
    array = choose_volume(raw.header.path, volumes, volume, has_options=has_options)
    array, good = replace_nan(raw.header.path, array, nan, has_options=has_options)
    return Image(_to_tensor(array), grid, None if good is None else _to_tensor(good))


def require_no_volume(volume: int | None, name: str) -> None:
    """Raise ConfigError for the number of a volume of an image in memory, which has channels."""
    if volume is not None:
        raise ConfigError(
            f"{option('volume', str(volume))}: {name} is an image in memory, with channels and no volumes; leave {option('volume', '')} out"
        )


def _checked_image(image: Image, name: str, nan: NanPolicy, *, has_options: bool) -> Image:
    """An image in memory, (1, c, *s), as if it were read from a file."""
    array, good = replace_nan(name, image_array(image, name), nan, has_options=has_options)
    mask = mask_array(image, name)
    if good is not None:
        finite = np.asarray(good.all(1, keepdims=True), dtype=np.float32)
        mask = finite if mask is None else mask * finite
    data = torch.from_numpy(np.array(array, dtype=np.float32))
    return Image(data, image.grid, None if mask is None else torch.from_numpy(mask))


def _read_voxels(source: Source | Image, *, name: str, strict: bool) -> tuple[str, np.ndarray, Grid]:
    """Name for messages, finite voxels (*s) in the given precision, and grid of a mask or a label map."""
    if isinstance(source, Image):
        channels, grid = image_array(source, name)[0], source.grid
        if len(channels) != 1:
            raise InputError(f"{name}: {len(channels)} channels; one is expected")
        array = channels[0]
    else:
        raw = read_raw(source, strict=strict)
        name, (volumes, grid) = os.fspath(raw.header.path), as_volumes(raw)
        array = choose_volume(raw.header.path, volumes, None, has_options=False)
    return name, replace_nan(name, array, "error", has_options=False)[0], grid


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]


def to_labels(name: str, array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(to_whole_numbers(name, array)))[None, None]


def to_whole_numbers(name: str | os.PathLike[str], array: np.ndarray) -> np.ndarray:
    """The labels of a finite array as int64. Those up to MAX_ROUNDING off whole numbers are rounded, which the log says.

    Raises:
        InputError: values that are not whole, or too large to be exact.
    """
    if array.dtype.kind in "iub":
        if int(array.max(initial=0)) > MAX_LABEL:
            raise InputError(f"{name}: label {int(array.max())} is above 2^63 - 1, the largest that can be kept; renumber the labels")
        return array.astype(np.int64)
    whole = np.rint(array)
    off = np.abs(array - whole)
    if off.max(initial=0) > MAX_ROUNDING:
        where = np.unravel_index(int(np.argmax(off)), array.shape)
        raise InputError(f"{name}: labels must be whole numbers, but voxel {tuple(map(int, where))} is {array[where]:g}; give a label map")
    size = np.abs(whole).max(initial=0)
    if size > MAX_FLOAT_LABEL:
        raise InputError(f"{name}: label {int(size)} is above 2^53, where numbers with a decimal point are not exact; store integers")
    if off.max(initial=0) > 0:
        log.warning("%s: the labels are up to %.1g off whole numbers: rounded", name, off.max())
    return whole.astype(np.int64)


MAX_LABEL, MAX_FLOAT_LABEL = 2**63 - 1, 2**53
"""Largest label, and the largest that is exact in an image of float64."""

MAX_ROUNDING = 1e-3
"""Labels may be this far off a whole number: more than float32 and scaling factors of files cause. Not measured."""


def read_labels(source: Source | Image, like: Image | None = None, *, name: str = "the label map", strict: bool = False) -> Image:
    """Read a label map, (1, 1, *s) int64; with ``like``, on that image's grid: labels on another one are resampled by world coordinates.

    Args:
        source, name, strict: as for ``read_image``.

    Raises:
        InputError: labels that are not whole numbers or not exact, or that do not overlap the image.
    """
    place, array, grid = _read_voxels(source, name=name, strict=strict)
    labels = Image(to_labels(place, array), grid)
    return labels if like is None else _onto_grid(place, labels, like, "label map")


def read_mask(source: Source | Image, image: Image, *, name: str = "the mask", strict: bool = False, excludes: bool = False) -> Image:
    """Read a mask, and return ``image`` with it. Voxels above 0 are inside. A mask on another grid is resampled by world coordinates.

    Args:
        source, name, strict: as for ``read_image``.
        excludes: voxels above 0 are outside instead, such as a lesion; there may be none.

    Raises:
        InputError: the mask is empty (leaves nothing), does not reach the image, or has another shape at the same affine.
    """
    place, array, grid = _read_voxels(source, name=name, strict=strict)
    binary = Image(_to_tensor(array > 0), grid)
    if not (excludes or bool(binary.data.any())):
        raise InputError(f"{place}: the mask is empty: no voxel is above 0")
    binary = _onto_grid(place, binary, image, "mask")
    if excludes:
        if not bool(binary.data.any()):
            return image
        binary = replace(binary, data=1 - binary.data)
    if not bool(binary.data.any()):
        raise InputError(f"{place}: {'it excludes every voxel of its image' if excludes else 'the mask does not overlap its image'}")
    return Image(image.data, image.grid, binary.data if image.mask is None else image.mask * binary.data)


MAX_OFFSET = 0.01
"""Grids whose voxels are this close, in voxels, are the same: tools round affines. Not measured."""


def _onto_grid(path: str, given: Image, image: Image, what: str) -> Image:
    """A label map or mask on the grid of its image: nearest neighbor, 0 outside its own grid.

    Raises:
        InputError: another dimension, another shape at the same affine, or no overlap.
    """
    own, wanted = given.grid, image.grid
    if own.ndim != wanted.ndim:
        raise InputError(
            f"{path}: a {own.ndim}D {what} {own.shape} for a {wanted.ndim}D image {wanted.shape}; they must have the same dimension"
        )
    require_same_plane(own.placement, wanted.placement, f"{path} and its image")
    if own.shape == wanted.shape and own.offset(wanted) <= MAX_OFFSET:
        return Image(given.data, wanted)
    if own.shape != wanted.shape and np.allclose(own.affine, wanted.affine):
        raise InputError(f"{path}: shape {own.shape} at the affine of an image of {wanted.shape}: one of the two is wrong")
    points = given.locate(wanted.identity(image.data), wanted)
    if not bool(own.contains(points).any()):
        raise InputError(f"{path}: the {what} and its image do not overlap in world space; is the {what} of another image?")
    log.warning("%s: the %s is not on the grid of its image: resampled by nearest-neighbor interpolation", path, what)
    return Image(sample(given.data, points, own, mode="nearest", outside="zero"), wanted)


def write_image(
    path: str | os.PathLike[str], data: Tensor, grid: Grid, *, integer: bool = False, like: Grid | None = None, missing: bool = False
) -> None:
    """Write an image.

    Args:
        data: (1, c, *s) or (c, *s); several channels are written as volumes of a 4D file.
        integer: round, and store as the smallest integer type that holds all values; otherwise float32.
        like: a grid of the same voxels in another order, in which they are stored.
        missing: NaN are the user's own, and stay.

    Raises:
        OutputError: NaN, Inf, or values that the type cannot hold; or the file cannot be written.
    """
    if like is not None:
        data, grid = grid.restored(data, like), like
    write_voxels(path, stored_voxels(path, data, grid, integer=integer, missing=missing), grid)


def stored_voxels(path: str | os.PathLike[str], data: Tensor, grid: Grid, *, integer: bool, missing: bool) -> np.ndarray:
    """The voxels (*s) or (*s, c) as a file stores them; arguments and errors as for ``write_image``."""
    array = np.moveaxis(data.detach().cpu().reshape(-1, *grid.shape).numpy(), 0, -1)
    array = array if array.shape[-1] > 1 else array[..., 0]
    if integer:
        return smallest_integers(path, require_finite_result(path, array))
    values = finite_float32(path, np.where(np.isnan(array), 0, array) if missing else array)
    values[np.isnan(array)] = np.nan
    return values


def smallest_integers(path: str | os.PathLike[str], array: np.ndarray) -> np.ndarray:
    """The array, rounded, in the smallest integer type that holds its values."""
    whole = array if array.dtype.kind in "iu" else np.rint(array)
    low, high = int(whole.min()), int(whole.max())
    for dtype in (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return whole.astype(dtype)
    raise OutputError(f"{os.fspath(path)}: the numbers {low} to {high} exceed 64-bit integers; renumber the labels")
