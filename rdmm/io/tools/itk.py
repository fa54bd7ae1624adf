"""Warps and affines in the files of ITK and ANTs.

A warp is a NIfTI file (X, Y, Z, 1, 3) (2D: (X, Y, 1, 1, 2)), intent 1007, float32. At each voxel of the fixed grid it holds the
displacement u in LPS millimeters, whatever the unit of its header; x -> x + u(x) takes a fixed point to its moving point. An affine is
ITK's MATLAB-4 file, also LPS.
In memory, transforms map world millimeters (RAS+): ``Affine`` with a world matrix, or ``Placed``.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch

from rdmm.io.files import finite_float32, require_file, require_finite_result, write_atomically
from rdmm.io.nifti import DISPLACEMENT_INTENT, VECTOR_INTENT, encode_nifti, read_raw, write_nifti
from rdmm.io.vectors import from_itk_affine, from_vectors, ras_to_lps, require_itk_grid, to_itk_affine, world_displacement
from rdmm.spatial.grid import Grid, is_invertible
from rdmm.spatial.transform import Affine, Placed
from rdmm.types import InputError, Tensor


def write_warp(path: str | os.PathLike[str], u: Tensor, grid: Grid, *, like: Grid | None = None) -> None:
    """Write a displacement field as a warp.

    Args:
        u: (1, d, *s) in domain units of ``grid``.
        like: a grid of the same voxels in another order, in which they are stored.

    Raises:
        OutputError: the grid is sheared, or the file cannot be written.
    """
    require_itk_grid(grid, os.fspath(path))
    d = grid.ndim
    vectors = world_displacement(u, grid) @ ras_to_lps(d)[:d, :d]
    if like is not None:
        reordered = grid.restored(torch.from_numpy(np.moveaxis(vectors, -1, 0).copy()), like)
        vectors, grid = np.moveaxis(reordered.numpy(), 0, -1), like
    write_nifti(path, encode_nifti(finite_float32(path, vectors), grid, intent=VECTOR_INTENT))


def read_warp(path: str | os.PathLike[str]) -> Placed:
    """Read a displacement field as a map of world millimeters.

    Raises:
        InputError: the file is not a vector field in ITK's layout, or not finite.
    """
    raw = read_raw(path, strict=True)
    shape, axes = raw.array.shape, raw.header.placement.axes
    if len(shape) != 5 or shape[3:] != (1, len(axes)) or len(axes) < 2:
        raise InputError(f"{path}: shape {shape} is no displacement field; (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2) is expected")
    if raw.header.intent == DISPLACEMENT_INTENT:
        raise InputError(f"{path}: intent 1006 (DISPVECT): vectors of AFNI or FSL, not of ITK; convert the file with rdmm convert")
    if not np.isfinite(raw.array).all():
        raise InputError(f"{path}: the displacement has NaN or Inf; write it again with the tool that made it")
    grid, d = raw.header.grid(), len(axes)
    return from_vectors(raw.array.reshape(*grid.shape, d).astype(np.float64) @ ras_to_lps(d)[:d, :d], grid)


def write_affine(path: str | os.PathLike[str], matrix: np.ndarray) -> None:
    """Write the world matrix (d+1, d+1), RAS millimeters, fixed -> moving, as ITK's AffineTransform_double (.mat)."""
    from scipy.io import savemat

    d = matrix.shape[0] - 1
    parameters = to_itk_affine(matrix)[:, None]
    buffer = io.BytesIO()
    require_finite_result(path, parameters)
    savemat(buffer, {f"AffineTransform_double_{d}_{d}": parameters, "fixed": np.zeros((d, 1))}, format="4")  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def write_affine_text(path: str | os.PathLike[str], matrix: np.ndarray) -> None:
    """Write the world matrix (d+1, d+1) as ITK's text file (.txt, .tfm)."""
    d = matrix.shape[0] - 1
    numbers = " ".join(repr(float(x)) for x in require_finite_result(path, to_itk_affine(matrix)))
    lines = ["#Insight Transform File V1.0", "#Transform 0", f"Transform: AffineTransform_double_{d}_{d}"]
    lines += [f"Parameters: {numbers}", f"FixedParameters: {' '.join(['0'] * d)}"]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_affine(path: str | os.PathLike[str]) -> Affine:
    """Read an affine of ITK (.mat, or text .txt, .tfm) as a map of world millimeters.

    Raises:
        InputError: the file is not an affine of ITK, or its matrix is singular or not finite.
    """
    path = require_file(path)
    content = _read_mat(path) if path.suffix == ".mat" else _read_text(path)
    d = content["fixed"].size
    kinds = (f"AffineTransform_double_{d}_{d}", f"MatrixOffsetTransformBase_double_{d}_{d}", f"AffineTransform_float_{d}_{d}")
    name = next((k for k in kinds if k in content), None)
    if d not in (2, 3) or name is None or content[name].size != d * d + d:
        raise InputError(f"{path}: not an affine of ITK; it holds {', '.join(content)}")
    matrix = from_itk_affine(content[name].ravel().astype(np.float64), content["fixed"].ravel().astype(np.float64))
    if not is_invertible(matrix):
        raise InputError(f"{path}: the affine is singular or not finite")
    return Affine(torch.as_tensor(matrix))


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    try:
        found = {k: np.asarray(v) for k, v in loadmat(path).items() if not k.startswith("__")}
        content = {k: v for k, v in found.items() if v.dtype.kind in "fiu"}
    except Exception as error:
        raise InputError(f"{path}: not a MATLAB-4 file of ITK: {error}") from error
    if "fixed" not in content:
        raise InputError(f"{path}: not an ITK transform: no entry 'fixed'")
    return content


def _read_text(path: Path) -> dict[str, np.ndarray]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
        numbers = {k: np.array(fields[k].split(), dtype=np.float64) for k in ("Parameters", "FixedParameters")}
        return {fields["Transform"].strip(): numbers["Parameters"], "fixed": numbers["FixedParameters"]}
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not an ITK text transform ({type(error).__name__}: {error})") from error
