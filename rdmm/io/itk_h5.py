"""ITK's composite transforms (.h5), as ANTs and SimpleITK write them: affine maps and displacement fields in one file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdmm.io.files import existing, write_atomically
from rdmm.io.nifti import file_grid
from rdmm.io.vectors import from_vectors, lps, require_itk_grid, world_vectors
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Affine, Composed, Identity, Placed, Transform, flat
from rdmm.types import ConfigError, InputError


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("ITK's .h5 files need the extra: pip install 'rdmm[formats]'") from error
    return h5py


def write_h5(path: Path, transform: Transform, grid: Grid | None) -> None:
    """ITK's CompositeTransform: the last entry is the one that a point goes through first."""
    maps = [m if isinstance(m, Affine | Placed) else _placed(m, grid) for m in flat(transform)]
    d = next((_ndim(m) for m in maps), 3)
    buffer = io.BytesIO()
    with _h5py().File(buffer, "w") as file:
        text = _h5py().string_dtype("ascii")
        groups = [(f"CompositeTransform_double_{d}_{d}", None, None), *(_entry(m) for m in reversed(maps))]
        for k, (kind, parameters, fixed) in enumerate(groups):
            group = file.create_group(f"TransformGroup/{k}")
            group.create_dataset("TransformType", data=[kind], dtype=text)
            if parameters is not None:
                group.create_dataset("TransformParameters", data=parameters)
                group.create_dataset("TransformFixedParameters", data=fixed)
        for name, value in (("ITKVersion", "5.4.0"), ("HDFVersion", "1.14"), ("OSName", "any"), ("OSVersion", "any")):
            file.create_dataset(name, data=[value], dtype=text)
    write_atomically(path, buffer.getvalue())


def _placed(m: Transform, grid: Grid | None) -> Placed:
    """A map of another kind as a warp on ``grid``."""
    if grid is None:
        raise ConfigError("this transform has no grid of its own: pass --fixed IMAGE")
    return from_vectors(world_vectors(m, grid), grid)


def _ndim(m: Transform) -> int:
    return m.grid.ndim if isinstance(m, Placed) else int(m.matrix.shape[-1]) - 1  # type: ignore[attr-defined]


def _entry(m: Transform) -> tuple[str, np.ndarray, np.ndarray]:
    """Type, parameters and fixed parameters of one map."""
    d = _ndim(m)
    if isinstance(m, Affine):
        matrix = lps(d) @ m.matrix.double().numpy() @ lps(d)
        return f"AffineTransform_double_{d}_{d}", np.concatenate([matrix[:d, :d].ravel(), matrix[:d, d]]), np.zeros(d)
    assert isinstance(m, Placed)
    grid = m.grid
    require_itk_grid(grid, "the warp")
    vectors = world_vectors(m, grid) @ lps(d)[:d, :d]
    axes = (lps(d) @ np.asarray(grid.affine))[:d] / [*grid.voxel, 1.0]
    fixed = np.concatenate([grid.shape, axes[:, d], grid.voxel, axes[:, :d].ravel()])
    parameters = vectors.reshape(-1, d, order="F").ravel()  # a vector after the other, the first axis fastest
    return f"DisplacementFieldTransform_double_{d}_{d}", parameters, fixed


def read_h5(path: Path) -> Transform:
    h5py = _h5py()
    try:
        with h5py.File(existing(path), "r") as file:
            group = file["TransformGroup"]
            entries = []
            for k in range(len(group)):
                entry = group[str(k)]
                name = next((n for n in ("TransformParameters", "TranformParameters") if n in entry), "")
                fixed = name.replace("Parameters", "FixedParameters")
                numbers = [np.asarray(entry[n], dtype=np.float64) if n in entry else np.zeros(0) for n in (name or "-", fixed or "-")]
                entries.append((np.ravel(entry["TransformType"])[0].decode(), *numbers))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise InputError(f"{path}: not a transform file of ITK ({type(error).__name__}: {error})") from error
    maps = [_of_h5(path, *entry) for entry in entries if not entry[0].startswith("CompositeTransform")]
    out: Transform = Identity()
    for m in reversed(maps):
        out = m if isinstance(out, Identity) else Composed(out, m)
    return out


def _of_h5(path: Path, kind: str, parameters: np.ndarray, fixed: np.ndarray) -> Transform:
    name, _, rest = kind.partition("_")
    d = int(rest.rpartition("_")[2]) if rest.rpartition("_")[2] in ("2", "3") else 0
    if not (np.isfinite(parameters).all() and np.isfinite(fixed).all()):
        raise InputError(f"{path}: {kind} holds NaN or Inf")
    if name in ("AffineTransform", "MatrixOffsetTransformBase") and d and parameters.size == d * d + d and fixed.size == d:
        m = np.eye(d + 1)
        m[:d, :d] = parameters[: d * d].reshape(d, d)
        m[:d, d] = parameters[d * d :] + fixed - m[:d, :d] @ fixed
        if abs(np.linalg.det(m)) < 1e-9:
            raise InputError(f"{path}: the affine is singular")
        return Affine(torch.as_tensor(lps(d) @ m @ lps(d)))
    if name == "DisplacementFieldTransform" and d and fixed.size == d * d + 3 * d:
        shape, origin, voxel, axes = np.split(fixed, [d, 2 * d, 3 * d])
        size = tuple(int(n) for n in shape)
        if min(size) > 0 and parameters.size == d * int(np.prod(size, dtype=object)):
            affine = np.eye(d + 1)
            affine[:d, :d], affine[:d, d] = axes.reshape(d, d) * voxel, origin
            grid = file_grid(path, size, lps(d) @ affine)
            return from_vectors(parameters.reshape(-1, d).reshape(*size, d, order="F") @ lps(d)[:d, :d], grid)
    raise InputError(f"{path}: {kind} cannot be read: affine maps and displacement fields can")
