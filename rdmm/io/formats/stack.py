"""All that the voxels of an image hold, volumes, vectors or colors: read with the way they are stored, and written in the same way."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rdmm.io.files import finite_float32, require_finite_result
from rdmm.io.formats.choice import read_raw, write_voxels
from rdmm.io.formats.header import Raw, Storage
from rdmm.io.images import as_volumes, choose_volume, replace_nan, require_no_volume, smallest_integers, to_labels
from rdmm.io.in_memory import image_array, mask_array
from rdmm.io.nifti import Source, log
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import ConfigError, InputError, OutputError, Tensor, nearest, option

TYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
"""Types in which voxels can be stored."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The volumes of an image, or the components of its vectors, tensors or colors, before they are converted to tensors.

    Args:
        name: what messages call it.
        array: (*s, n), in the file's precision.
        grid: the grid of the first axes.
        storage: how the file stores them.
        is_vector: the n numbers at a voxel belong together: vectors, tensors or colors.
        mask: weight of each voxel, (1, 1, *s), of an image in memory; None: 1.
    """

    name: str
    array: np.ndarray
    grid: Grid
    storage: Storage
    is_vector: bool = False
    mask: np.ndarray | None = None

    def images(self, *, labels: bool) -> list[Image]:
        """The volumes, (1, 1, *s) each; NaN and Inf are 0 and outside the volume's mask, which the log says.

        Args:
            labels: whole numbers, as int64; otherwise float32, or float64 if float32 cannot hold the stored type.

        Raises:
            InputError: a volume without a finite voxel, or a label map with values that are no labels.
        """
        precise = self.storage.dtype.itemsize > 2 and self.storage.dtype != np.float32
        out = []
        for k in range(self.array.shape[-1]):
            array, good = replace_nan(self.name, self.array[..., k], "error" if labels else "mask", has_options=False)
            mask = self.mask if good is None else good[None, None] if self.mask is None else self.mask * good
            values = np.ascontiguousarray(array, dtype=np.float64 if precise else np.float32)
            data = to_labels(self.name, array) if labels else torch.from_numpy(values)[None, None]
            out.append(Image(data, self.grid, None if mask is None else torch.from_numpy(mask.astype(np.float32))))
        return out


def read_stack(source: Source | Image, volume: int | None = None, *, name: str = "the image") -> Stack:
    """Read all volumes, or vectors or colors, of an image.

    Args:
        source: a path, a nibabel image, or an Image.
        volume: number of the only volume to read, from 0; None: all.
        name: what messages call an Image.

    Raises:
        InputError: the file is damaged, or has more axes.
        ConfigError: a ``volume`` of an image in memory.
    """
    if isinstance(source, Image):
        require_no_volume(volume, name)
        array = image_array(source, name)[0]
        return Stack(name, np.moveaxis(array, 0, -1), source.grid, Storage(array.dtype), mask=mask_array(source, name))
    raw = read_raw(source, strict=False, colors=True)
    is_vector = raw.array.ndim == 5 and raw.array.shape[3] == 1
    array, grid = as_volumes(_without_fourth_axis(raw) if is_vector else raw)
    if volume is not None:
        if is_vector:
            raise InputError(f"{raw.header.path}: {option('volume', str(volume))}: an image of vectors or colors has no volumes")
        array = choose_volume(raw.header.path, array, volume, has_options=True)[..., None]
    return Stack(os.fspath(raw.header.path), array, grid, raw.storage, is_vector)


def _without_fourth_axis(raw: Raw) -> Raw:
    """Vectors (X, Y, Z, 1, n) as (X, Y, Z, n)."""
    return Raw(raw.header, raw.array[:, :, :, 0], raw.storage)


def choose_type(name: str | None, stack: Stack, *, labels: bool) -> tuple[np.dtype, bool]:
    """The type of a result, and whether it may be widened: ``name``, or else the type of the input.

    Raises:
        ConfigError: there is no such type.
    """
    if name is not None:
        text = getattr(name, "__name__", str(name))
        if text not in TYPES:
            raise ConfigError(f"{option('dtype', text)}: there is no such type{nearest(text, TYPES)}; there are {', '.join(TYPES)}")
        return np.dtype(text), False
    stored = stack.storage.dtype
    if stack.storage.is_color or stored.kind == "b":
        return np.dtype(np.uint8), not stack.storage.is_color
    if labels and stored.kind not in "iu":
        return np.dtype(np.uint8), True
    return np.dtype(np.float64) if stored.kind == "f" and stored.itemsize > 8 else stored, True


def cast(path: str | os.PathLike[str], data: Tensor, dtype: np.dtype, *, widen: bool, quiet: bool = False) -> Tensor:
    """Values in the type of a result; integers are rounded to the nearest.

    Args:
        widen: values beyond an integer type are stored in the smallest one that holds them, which the log says, unless ``quiet``.

    Raises:
        OutputError: values that the type cannot hold.
    """
    array = data.detach().cpu().numpy()
    if dtype.kind == "f":
        missing = np.isnan(array)
        values = np.where(missing, 0, array)
        values = finite_float32(path, values) if dtype == np.float32 else require_finite_result(path, values.astype(dtype))
        values[missing] = np.nan
        return torch.from_numpy(values)
    whole = np.rint(require_finite_result(path, array)) if array.dtype.kind == "f" else array
    low, high, limits = int(whole.min()), int(whole.max()), np.iinfo(dtype)
    if limits.min <= low and high <= limits.max:
        return torch.from_numpy(whole.astype(dtype))
    if not widen:
        wanted = option("dtype", smallest_integers(path, whole).dtype.name)
        raise OutputError(f"{os.fspath(path)}: not written: values from {low} to {high} do not fit {dtype.name}; pass {wanted}")
    wider = smallest_integers(path, whole)
    if not quiet:
        log.warning("%s: values from %d to %d do not fit the input's type %s: stored as %s", path, low, high, dtype.name, wider.dtype.name)
    return torch.from_numpy(wider)


def write_stack(path: Path, data: Tensor, grid: Grid, stack: Stack) -> None:
    """Write values (1, n, *s) in their own type on a grid, as the file of ``stack`` stores them.

    Raises:
        OutputError: the file cannot be written.
    """
    array = np.moveaxis(data[0].numpy(), 0, -1)
    write_voxels(path, array if array.shape[-1] > 1 else array[..., 0], grid, stack.storage, is_vector=stack.is_vector)
