"""Transforms on disk, as ANTs and ITK write them.

A warp is a NIfTI file (X, Y, Z, 1, 3) (2D: (X, Y, 1, 1, 2)), intent 1007, float32: at each voxel of the fixed grid the
displacement u in LPS millimetres, x -> x + u(x), pulling back. An affine is ITK's MATLAB-4 file, LPS as well.
Between files, transforms are maps of world millimetres (RAS+): ``Affine`` with a world matrix, or ``Placed``.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rdmm.io.files import existing, write_atomically
from rdmm.io.itk_h5 import read_h5, write_h5
from rdmm.io.nifti import embedded, file_grid, in_plane_affine, nifti_bytes, read_raw, write_nifti
from rdmm.io.vectors import IMAGES, Space, from_vectors, grid_of, lps, require_itk_grid, world_displacement, world_matrix
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Affine, Placed, Transform, displacement, framed
from rdmm.types import InputError, Tensor

_VECTOR_INTENT, _DISPLACEMENT_INTENT = 1007, 1006


def write_warp(path: str | os.PathLike[str], u: Tensor, grid: Grid, *, like: Grid | None = None) -> None:
    """The displacement u (1, d, *s), domain units of ``grid``; stored as ``like``, the same voxels in another order."""
    require_itk_grid(grid, os.fspath(path))
    d = grid.ndim
    vectors = world_displacement(u, grid) @ lps(d)[:d, :d]
    if like is not None:
        turned = grid.restored(torch.from_numpy(np.moveaxis(vectors, -1, 0).copy()), like)
        vectors, grid = np.moveaxis(turned.numpy(), 0, -1), like
    shape = (*grid.shape, *(1,) * (4 - d), d)
    write_nifti(path, nifti_bytes(vectors.reshape(shape).astype(np.float32), embedded(grid), intent=_VECTOR_INTENT))


def read_warp(path: str | os.PathLike[str]) -> Placed:
    """A displacement field as a map of world millimetres.

    Raises:
        InputError: the file is not a vector field in ITK's layout, or not finite.
    """
    path = existing(path)
    raw = read_raw(path, path.read_bytes(), strict=True)
    shape, intent = raw.array.shape, int(raw.header["intent_code"])
    if len(shape) != 5 or shape[3] != 1 or shape[4] not in (2, 3) or (shape[4] == 2) != (shape[2] == 1):
        raise InputError(f"{path}: shape {shape} is no displacement field; (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2) is wanted")
    if intent == _DISPLACEMENT_INTENT:
        raise InputError(f"{path}: intent 1006 (DISPVECT): AFNI or FSL vectors, not ITK's; convert it with rdmm convert")
    if not np.isfinite(raw.array).all():
        raise InputError(f"{path}: the displacement has NaN or Inf")
    d = shape[4]
    grid = file_grid(path, shape[:d], raw.affine if d == 3 else in_plane_affine(raw.affine))
    return from_vectors(raw.array.reshape(*shape[:d], d).astype(np.float64) @ lps(d)[:d, :d], grid)


def write_affine(path: str | os.PathLike[str], matrix: np.ndarray) -> None:
    """The world matrix (d+1, d+1), RAS millimetres, fixed -> moving, as ITK's AffineTransform_double."""
    from scipy.io import savemat

    d = matrix.shape[0] - 1
    m = lps(d) @ matrix @ lps(d)
    parameters = np.concatenate([m[:d, :d].ravel(), m[:d, d]])[:, None]
    buffer = io.BytesIO()
    savemat(buffer, {f"AffineTransform_double_{d}_{d}": parameters, "fixed": np.zeros((d, 1))}, format="4")  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def write_affine_text(path: str | os.PathLike[str], matrix: np.ndarray) -> None:
    """The same as ITK's text file (.txt, .tfm)."""
    d = matrix.shape[0] - 1
    m = lps(d) @ matrix @ lps(d)
    numbers = " ".join(repr(float(x)) for x in (*m[:d, :d].ravel(), *m[:d, d]))
    lines = ["#Insight Transform File V1.0", "#Transform 0", f"Transform: AffineTransform_double_{d}_{d}"]
    lines += [f"Parameters: {numbers}", f"FixedParameters: {' '.join(['0'] * d)}"]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_affine(path: str | os.PathLike[str]) -> Affine:
    """An ITK affine (.mat, or text .txt/.tfm) as a map of world millimetres."""
    path = existing(path)
    content = _mat(path) if path.suffix == ".mat" else _text(path)
    d = content["fixed"].size
    kinds = (f"AffineTransform_double_{d}_{d}", f"MatrixOffsetTransformBase_double_{d}_{d}", f"AffineTransform_float_{d}_{d}")
    name = next((k for k in kinds if k in content), None)
    if d not in (2, 3) or name is None or content[name].size != d * d + d:
        raise InputError(f"{path}: not an ITK affine; it holds {', '.join(content)}")
    p, centre = content[name].ravel().astype(np.float64), content["fixed"].ravel().astype(np.float64)
    m = np.eye(d + 1)
    m[:d, :d] = p[: d * d].reshape(d, d)
    m[:d, d] = p[d * d :] + centre - m[:d, :d] @ centre
    if not np.isfinite(m).all() or abs(np.linalg.det(m)) < 1e-9:
        raise InputError(f"{path}: the affine is singular or not finite")
    return Affine(torch.as_tensor(lps(d) @ m @ lps(d)))


def _mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    try:
        found = {k: np.asarray(v) for k, v in loadmat(path).items() if not k.startswith("__")}
        content = {k: v for k, v in found.items() if v.dtype.kind in "fiu"}
    except Exception as error:
        raise InputError(f"{path}: not a MATLAB-4 file as ITK writes them: {error}") from error
    if "fixed" not in content:
        raise InputError(f"{path}: not an ITK transform: no entry 'fixed'")
    return content


def _text(path: Path) -> dict[str, np.ndarray]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
        numbers = {k: np.array(fields[k].split(), dtype=np.float64) for k in ("Parameters", "FixedParameters")}
        return {fields["Transform"].strip(): numbers["Parameters"], "fixed": numbers["FixedParameters"]}
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not an ITK text transform ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class ITK:
    """ITK and ANTs: warps .nii.gz, affines .mat, .txt, .tfm, and all of a chain in one .h5."""

    def read(self, path: Path, space: Space) -> Transform:
        if path.suffix == ".h5":
            return read_h5(path)
        return read_warp(path) if path.name.endswith(IMAGES) else read_affine(path)

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        if path.suffix == ".h5":
            return write_h5(path, transform, space.fixed)
        if path.suffix in (".mat", ".txt", ".tfm"):
            matrix = world_matrix(transform, path)
            return write_affine(path, matrix) if path.suffix == ".mat" else write_affine_text(path, matrix)
        grid = grid_of(transform, space)
        write_warp(path, displacement(framed(transform, grid), grid, torch.zeros(1, dtype=torch.float64)), grid)
