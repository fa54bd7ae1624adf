"""What Python passes instead of a file: checked as files are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch

from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.types import InputError, Tensor


def require_image_source(value: Any, name: str) -> None:
    """Raise InputError unless ``value``, the argument ``name``, is a path, a nibabel image or an Image."""
    if not isinstance(value, str | os.PathLike | nib.spatialimages.SpatialImage | Image):
        hint = "pass a path, an image of nibabel, SimpleITK or ANTs, an rdmm.Image, or an array with spacing= or affine="
        raise InputError(f"{name} is {_describe(value)}; {hint}")


def require_shape_source(value: Any, name: str) -> None:
    """Raise InputError unless ``value``, the argument ``name``, is a path or a Measure."""
    if not isinstance(value, str | os.PathLike | Measure):
        raise InputError(f"{name} is {_describe(value)}; a shape is expected: pass the path of a .vtk or .ply file, or an rdmm.Measure")


def require_path(value: Any, name: str) -> None:
    """Raise InputError unless ``value``, the argument ``name``, is a path or None."""
    if value is not None and not isinstance(value, str | os.PathLike):
        raise InputError(f"{name} is {_describe(value)}; the path of a file is expected")


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, np.ndarray | Tensor) else ""
    return f"of type {type(value).__name__}{shape}"


def image_array(image: Image, name: str) -> np.ndarray:
    """The values (1, c, *s) of an image in memory, in its precision; ``name`` is for messages.

    Raises:
        InputError: values that are not real numbers in one block of memory, or not of one image.
    """
    data = _real_array(image.data, name)
    if len(data) != 1 or not data.shape[1]:
        raise InputError(f"{name}: data of shape {data.shape}; one image (1, channels, *grid.shape) is expected, not a batch of them")
    return data


def mask_array(image: Image, name: str) -> np.ndarray | None:
    """The mask (1, 1, *s) of an image in memory in float32, or None; ``name`` is for messages.

    Raises:
        InputError: another shape, or numbers that are not between 0 and 1, or all 0.
    """
    if image.mask is None:
        return None
    mask = _real_array(image.mask, f"the mask of {name}").astype(np.float32)
    if mask.shape[:2] != (1, 1) or not ((mask >= 0) & (mask <= 1)).all() or not mask.any():
        raise InputError(f"the mask of {name} is (1, 1, *grid.shape), of numbers from 0 to 1 that are not all 0; got {mask.shape}")
    return mask


def tensor_array(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    """An array of numpy or torch as plain real numbers of numpy, in their precision; ``name`` is for messages.

    Raises:
        InputError: they are not real numbers in one block of memory, or not two or more axes of them; or some are masked.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(f"{name} is a masked array; give its values ({name}.filled(0)) and, as a mask of its own, ~{name}.mask")
    array = _real_array(values, name) if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "biuf" or array.ndim < 2:
        raise InputError(
            f"{name} is an array of shape {array.shape} and type {array.dtype}; real numbers along two or three axes are expected"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize == 2 else np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def point_array(values: Any, ndim: int | None, name: str) -> np.ndarray:
    """Points (n, d) in float64; ``ndim`` is d if it is known, and ``name`` is for messages.

    Raises:
        InputError: another shape, or no finite numbers.
    """
    array = tensor_array(np.asarray(values) if isinstance(values, list | tuple) else values, name).astype(np.float64)
    if array.ndim != 2 or array.shape[1] not in ([2, 3] if ndim is None else [ndim]):
        raise InputError(
            f"{name}: an array of shape {array.shape}; (n, {ndim or 'd'}) is expected: a row of world millimeters for each point"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{name}: row {int(np.argmin(np.isfinite(array).all(1)))} is NaN or Inf; correct it first")
    return array


def landmark_arrays(values: Sequence[Any], ndim: int, name: str = "landmarks") -> tuple[np.ndarray, np.ndarray]:
    """Fixed and moving points (n, d) of two arrays; ``name`` is for messages.

    Raises:
        InputError: not two arrays of one shape.
    """
    if not isinstance(values, list | tuple | np.ndarray) or len(values) != 2:
        count = f" of {len(values)}" if isinstance(values, list | tuple) else ""
        raise InputError(
            f"{name} is {_describe(values)}{count}; give the path of a CSV, or two arrays: fixed and moving points (n, {ndim})"
        )
    fixed, moving = (point_array(x, ndim, f"{name}[{k}]") for k, x in enumerate(values))
    if len(fixed) != len(moving):
        raise InputError(f"{name}: {len(fixed)} fixed and {len(moving)} moving points; they must correspond, row by row")
    return fixed, moving


def _real_array(data: Tensor, name: str) -> np.ndarray:
    if data.is_complex():
        raise InputError(f"{name}: complex numbers; take the magnitude first (x.abs())")
    if data.layout != torch.strided or data.is_quantized or data.device.type == "meta":
        where = "on the device meta" if data.device.type == "meta" else f"of the layout {data.layout}, or quantized"
        raise InputError(f"{name}: a tensor {where}, which holds no plain numbers; pass a dense tensor on the CPU or a GPU")
    data = data.detach().cpu()
    return (data.float() if data.dtype in (torch.float16, torch.bfloat16) else data).numpy()
