"""ITK's composite transforms (.h5), as ANTs and SimpleITK write them: affine maps and displacement fields in one file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdmm.io.files import require_file, require_finite_result, write_atomically
from rdmm.io.nifti import make_grid
from rdmm.io.vectors import from_itk_affine, from_vectors, ras_to_lps, require_itk_grid, to_itk_affine, world_vectors
from rdmm.spatial.grid import Grid, is_invertible
from rdmm.spatial.transform import Affine, Placed, Transform, compose_all, flat
from rdmm.types import ConfigError, InputError


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("ITK's .h5 files need h5py: pip install 'rdmm[formats]'") from error
    return h5py


def write_h5(path: Path, transform: Transform, grid: Grid | None) -> None:
    """Write a transform as ITK's CompositeTransform, which applies its last entry to a point first.

    Maps without a grid of their own are sampled on ``grid``.

    Raises:
        ConfigError: h5py is not installed, or a map needs ``grid`` and it is None.
    """
    maps = [m if isinstance(m, Affine | Placed) else _sample_warp(m, grid) for m in flat(transform)]
    d = next((_ndim(m) for m in maps), 3)
    buffer = io.BytesIO()
    with _import_h5py().File(buffer, "w") as file:
        text = _import_h5py().string_dtype("ascii")
        groups = [(f"CompositeTransform_double_{d}_{d}", None, None), *(_encode_map(m) for m in reversed(maps))]
        for k, (kind, parameters, fixed) in enumerate(groups):
            group = file.create_group(f"TransformGroup/{k}")
            group.create_dataset("TransformType", data=[kind], dtype=text)
            if parameters is not None:
                group.create_dataset("TransformParameters", data=require_finite_result(path, parameters))
                group.create_dataset("TransformFixedParameters", data=fixed)
        for name, value in (("ITKVersion", "5.4.0"), ("HDFVersion", "1.14"), ("OSName", "any"), ("OSVersion", "any")):
            file.create_dataset(name, data=[value], dtype=text)
    write_atomically(path, buffer.getvalue())


def _sample_warp(m: Transform, grid: Grid | None) -> Placed:
    """Sample a map on ``grid``, as a displacement field."""
    if grid is None:
        raise ConfigError("this transform has no grid of its own: pass --fixed IMAGE")
    return from_vectors(world_vectors(m, grid), grid)


def _ndim(m: Transform) -> int:
    return m.grid.ndim if isinstance(m, Placed) else int(m.matrix.shape[-1]) - 1  # type: ignore[attr-defined]


def _encode_map(m: Transform) -> tuple[str, np.ndarray, np.ndarray]:
    """ITK's type name, parameters and fixed parameters of one map."""
    d = _ndim(m)
    if isinstance(m, Affine):
        return f"AffineTransform_double_{d}_{d}", to_itk_affine(m.matrix.double().numpy()), np.zeros(d)
    assert isinstance(m, Placed)
    grid = m.grid
    require_itk_grid(grid, "the warp")
    vectors = world_vectors(m, grid) @ ras_to_lps(d)[:d, :d]
    axes = (ras_to_lps(d) @ np.asarray(grid.affine))[:d] / [*grid.voxel, 1.0]
    fixed = np.concatenate([grid.shape, axes[:, d], grid.voxel, axes[:, :d].ravel()])
    parameters = vectors.reshape(-1, d, order="F").ravel()  # one vector after the other; the first axis varies fastest
    return f"DisplacementFieldTransform_double_{d}_{d}", parameters, fixed


def _read_entry(entry: Any) -> tuple[str, np.ndarray, np.ndarray]:
    """Type name, parameters and fixed parameters of one group of the file; an array is empty if the group lacks it (the first one does)."""
    kind, numbers = np.ravel(entry["TransformType"])[0].decode(), []
    prefix = "Transform" if "TransformParameters" in entry else "Tranform"  # some versions of ITK misspell it
    for name in (f"{prefix}Parameters", f"{prefix}FixedParameters"):
        numbers.append(np.asarray(entry[name], dtype=np.float64) if name in entry else np.zeros(0))
    return kind, numbers[0], numbers[1]


def read_h5(path: Path) -> Transform:
    """Read a transform file of ITK as a map of world millimeters.

    Raises:
        InputError: the file is not one of ITK's, or holds other transforms than affine maps and displacement fields.
        ConfigError: h5py is not installed.
    """
    h5py = _import_h5py()
    try:
        with h5py.File(require_file(path), "r") as file:
            group = file["TransformGroup"]
            entries = [_read_entry(group[str(k)]) for k in range(len(group))]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise InputError(f"{path}: not a transform file of ITK ({type(error).__name__}: {error})") from error
    maps = [_decode_map(path, *entry) for entry in entries if not entry[0].startswith("CompositeTransform")]
    return compose_all(reversed(maps))


def _decode_map(path: Path, kind: str, parameters: np.ndarray, fixed: np.ndarray) -> Transform:
    name, _, rest = kind.partition("_")
    d = int(rest.rpartition("_")[2]) if rest.rpartition("_")[2] in ("2", "3") else 0
    if not (np.isfinite(parameters).all() and np.isfinite(fixed).all()):
        raise InputError(f"{path}: {kind} holds NaN or Inf")
    if name in ("AffineTransform", "MatrixOffsetTransformBase") and d and parameters.size == d * d + d and fixed.size == d:
        matrix = from_itk_affine(parameters, fixed)
        if not is_invertible(matrix):
            raise InputError(f"{path}: the affine is singular")
        return Affine(torch.as_tensor(matrix))
    if name == "DisplacementFieldTransform" and d and fixed.size == d * d + 3 * d:
        shape, origin, voxel, axes = np.split(fixed, [d, 2 * d, 3 * d])
        size = tuple(int(n) for n in shape)
        if min(size) > 0 and parameters.size == d * int(np.prod(size, dtype=object)):
            affine = np.eye(d + 1)
            affine[:d, :d], affine[:d, d] = axes.reshape(d, d) * voxel, origin
            grid = make_grid(path, size, ras_to_lps(d) @ affine)
            return from_vectors(parameters.reshape(-1, d).reshape(*size, d, order="F") @ ras_to_lps(d)[:d, :d], grid)
    raise InputError(f"{path}: transforms of type {kind} cannot be read; affine maps and displacement fields can")
