"""Images, label maps and masks: read with every value checked, written atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from rdmm.io.nifti import Raw, Source, affine_in_3d, encode_nifti, in_plane_affine, log, make_grid, read_raw, read_stored, write_nifti
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.ops import sample
from rdmm.types import ConfigError, InputError, Tensor

NanPolicy = Literal["error", "zero", "mask"]
"""What to do with NaN and Inf: raise InputError, set them to 0, or mask them out."""


MIN_VOXELS = 4
"""Fewest voxels along an axis of an image: as many as the coarsest level of the pyramid keeps (Grid.scaled). Not measured."""


def _select_volume(path: Path, raw: Raw, volume: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The 2D or 3D array that a file holds, and its (d+1, d+1) affine; ``volume`` chooses one of a 4D file."""
    array, affine = raw.array, raw.affine
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 4:
        if volume is None:
            raise InputError(f"{path}: {array.shape[3]} volumes (4D); choose --volume K, 0 to {array.shape[3] - 1}")
        if not 0 <= volume < array.shape[3]:
            raise InputError(f"{path}: --volume {volume}: there is no such volume; volumes go from 0 to {array.shape[3] - 1}")
        array = array[..., volume]
    if array.ndim > 3 or array.ndim < 2:
        raise InputError(f"{path}: {array.ndim} dimensions {array.shape}; a 2D or 3D image is expected")
    if array.ndim == 3 and 1 in array.shape:
        if array.shape[2] != 1:
            raise InputError(f"{path}: shape {array.shape} is a single slice across a wrong axis; reorder it to (X, Y, 1) or (X, Y)")
        log.warning("%s: a single slice %s: treated as 2D", path, array.shape)
        array = array[..., 0]
    if min(array.shape) < MIN_VOXELS:
        raise InputError(f"{path}: shape {array.shape}: at least {MIN_VOXELS} voxels along each axis are needed")
    if array.ndim == 2:
        affine = in_plane_affine(affine)
    return array, affine


def _replace_nan(path: Path, array: np.ndarray, policy: NanPolicy) -> tuple[np.ndarray, np.ndarray | None]:
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
    if policy == "error":
        raise InputError(
            f"{path}: {bad} voxels are NaN or Inf (first at {tuple(map(int, where))}); correct the file, or pass --nan zero or --nan mask"
        )
    log.warning("%s: %d voxels are NaN or Inf: %s", path, bad, "set to 0" if policy == "zero" else "masked out")
    return np.where(good, array, 0), good if policy == "mask" else None


def read_image(source: Source, *, nan: NanPolicy = "error", volume: int | None = None, strict: bool = False) -> Image:
    """Read a scalar image as (1, 1, *s) float32.

    Args:
        source: a path, or a nibabel image.
        nan: what to do with NaN and Inf: ``error``, ``zero``, or ``mask`` (excluded from the similarity).
        volume: number of the volume to read from a 4D file, from 0.
        strict: refuse a file without s-form and q-form.

    Raises:
        InputError: the file is damaged or ambiguous; docs/faults.md lists the faults (1 to 13 and 17 to 28).
        ConfigError: ``nan`` is not one of the three.
    """
    if nan not in get_args(NanPolicy):
        raise ConfigError(f"nan must be one of {', '.join(get_args(NanPolicy))}, not {nan!r}")
    path, stored = read_stored(source)
    array, affine = _select_volume(path, read_raw(path, stored, strict=strict), volume)
    array, good = _replace_nan(path, array, nan)
    mask = None if good is None else _to_tensor(good)
    return Image(_to_tensor(array), make_grid(path, array.shape, affine), mask)


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]


def read_labels(path: Source, like: Image | None = None) -> Image:
    """Read a label map, (1, 1, *s) of whole numbers; with ``like``, it must have that image's grid.

    Raises:
        InputError: labels that are not whole numbers, or another grid.
    """
    image = read_image(path)
    if not torch.equal(image.data, image.data.round()):
        raise InputError(f"{path}: labels must be whole numbers")
    if like is not None and not (image.grid.shape == like.grid.shape and image.grid.same_frame(like.grid)):
        raise InputError(
            f"{path}: the grid of the labels {image.grid.shape} is not that of their image {like.grid.shape}, or lies elsewhere;"
            " resample the labels first"
        )
    return image


def read_mask(path: Source, image: Image) -> Image:
    """Read a mask, and return ``image`` with it. Voxels above 0 are inside. A mask on another grid is resampled by world coordinates.

    Raises:
        InputError: the mask is empty, does not reach the image, or has another shape at the same affine.
    """
    mask = read_image(path)
    binary = Image((mask.data > 0).float(), mask.grid)
    if not bool(binary.data.any()):
        raise InputError(f"{path}: the mask is empty: no voxel is above 0")
    if mask.grid != image.grid:
        if mask.grid.ndim != image.grid.ndim:
            raise InputError(
                f"{path}: a {mask.grid.ndim}D mask {mask.grid.shape} for a {image.grid.ndim}D image {image.grid.shape};"
                " they must have the same dimension"
            )
        if mask.grid.shape != image.grid.shape and np.allclose(mask.grid.affine, image.grid.affine):
            raise InputError(f"{path}: shape {mask.grid.shape} at the affine of an image of {image.grid.shape}: one of the two is wrong")
        if mask.grid.shape != image.grid.shape or not mask.grid.same_frame(image.grid):
            log.warning("%s: the mask is not on the grid of its image: resampled by nearest-neighbor interpolation", path)
        points = mask.locate(image.grid.identity(image.data), image.grid)
        binary = Image(sample(binary.data, points, mask.grid, mode="nearest", outside="zero"), image.grid)
        if not bool(binary.data.any()):
            raise InputError(f"{path}: the mask does not overlap its image")
    return Image(image.data, image.grid, binary.data if image.mask is None else image.mask * binary.data)


def write_image(path: str | os.PathLike[str], data: Tensor, grid: Grid, *, integer: bool = False, like: Grid | None = None) -> None:
    """Write an image.

    Args:
        data: (1, 1, *s) or (1, *s).
        integer: round, and store as int16 or, for larger values, int32; otherwise float32.
        like: a grid of the same voxels in another order, in which they are stored.
    """
    if like is not None:
        data, grid = grid.restored(data, like), like
    array = data.detach().cpu().reshape(grid.shape).numpy()
    array = np.rint(array).astype(np.int16 if np.abs(array).max(initial=0) < 2**15 else np.int32) if integer else array.astype(np.float32)
    write_nifti(path, encode_nifti(array, affine_in_3d(grid)))
