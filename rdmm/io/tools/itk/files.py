"""Warps and affines in the files of ITK and ANTs.

A warp is a NIfTI file (X, Y, Z, 1, 3) (2D: (X, Y, 1, 1, 2)), intent 1007, float32. At each voxel of the fixed grid it holds the
displacement u in LPS millimeters, whatever the unit of its header; x -> x + u(x) takes a fixed point to its moving point. An affine is
ITK's MATLAB-4 file, also LPS.
In memory, transforms map world millimeters (RAS+): ``Affine`` with a world matrix, or ``Placed``.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rdmm.io.files import finite_float32, require_finite_result, write_atomically
from rdmm.io.nifti import VECTOR_INTENT, encode_nifti, write_nifti
from rdmm.io.tools.itk.h5 import is_hdf5, read_h5, write_h5
from rdmm.io.tools.itk.maps import COMPOSITE, Entry, decode
from rdmm.io.tools.start import Start
from rdmm.io.vectors import (
    IMAGES,
    Space,
    affine_matrix,
    choose_grid,
    from_vectors,
    ras_to_lps,
    read_field,
    require_itk_grid,
    to_itk_affine,
    world_displacement,
)
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Placed, Transform, displacement, framed
from rdmm.types import InputError, Tensor

log = logging.getLogger(__name__)


MAX_COLUMNS_BYTES = 2**16
"""Largest file that is read at once. Affine maps have some hundred bytes."""


@dataclass(frozen=True)
class ITK:
    """ITK and ANTs: warps .nii.gz, linear maps .mat, .txt, .tfm, and a whole chain in one .h5. Greedy reads the warps and .txt."""

    endings = (*IMAGES, ".mat", ".txt", ".tfm", ".h5")
    needs_images = False

    def recognises(self, start: Start) -> bool:
        if start.shape:
            return start.in_itk_layout and start.intent in (0, VECTOR_INTENT)
        return is_hdf5(start.head) or start.text.startswith("#Insight Transform File") or _is_mat(start)

    def read(self, path: Path, space: Space) -> Transform:
        start = Start.of(path)
        if start.shape:
            if start.intent != VECTOR_INTENT:
                log.warning("%s: its header does not say that it holds vectors (intent 1007); read as displacements of ITK", path)
            return read_warp(path)
        if is_hdf5(start.head):
            return read_h5(path)
        return decode(path, _read_text(path) if start.text else _read_mat(path))

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        ending = path.suffix.lower()
        if ending == ".h5":
            return write_h5(path, transform, space.fixed)
        if ending in (".mat", ".txt", ".tfm"):
            matrix = affine_matrix(transform, path)
            return write_affine(path, matrix) if ending == ".mat" else write_affine_text(path, matrix)
        grid = choose_grid(transform, space)
        write_warp(path, displacement(framed(transform, grid), grid, torch.zeros(1, dtype=torch.float64)), grid)


def _is_mat(start: Start) -> bool:
    return start.path.suffix.lower() == ".mat" and not start.text


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


def read_warp(path: Path) -> Placed:
    """Read a displacement field as a map of world millimeters.

    Raises:
        InputError: the file is not a vector field in ITK's layout, or not finite.
    """
    field = read_field(path)
    d = field.grid.ndim
    return from_vectors(field.values @ ras_to_lps(d)[:d, :d], field.grid)


def write_affine(path: str | os.PathLike[str], matrix: np.ndarray) -> None:
    """Write the world matrix (d+1, d+1), RAS millimeters, fixed -> moving, as ITK's AffineTransform_double (.mat)."""
    d = matrix.shape[0] - 1
    parameters = require_finite_result(path, to_itk_affine(matrix))
    write_atomically(path, _mat_column(f"AffineTransform_double_{d}_{d}", parameters) + _mat_column("fixed", np.zeros(d)))


def _mat_column(name: str, numbers: np.ndarray) -> bytes:
    """A column of float64 as MATLAB-4 stores it, little-endian. scipy.io writes the same bytes; to load it takes longer than a small affine
    registration."""
    text = name.encode() + b"\0"
    return struct.pack("<5i", 0, len(numbers), 1, 0, len(text)) + text + numbers.astype("<f8").tobytes()


def write_affine_text(path: str | os.PathLike[str], matrix: np.ndarray) -> None:
    """Write the world matrix (d+1, d+1) as ITK's text file (.txt, .tfm)."""
    d = matrix.shape[0] - 1
    numbers = " ".join(repr(float(x)) for x in require_finite_result(path, to_itk_affine(matrix)))
    lines = ["#Insight Transform File V1.0", "#Transform 0", f"Transform: AffineTransform_double_{d}_{d}"]
    lines += [f"Parameters: {numbers}", f"FixedParameters: {' '.join(['0'] * d)}"]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _read_mat(path: Path) -> list[Entry]:
    """The transform of a MATLAB-4 file; its sizes are checked against the file's before its numbers are read."""
    columns = _parse_columns(path.read_bytes()) if path.stat().st_size <= MAX_COLUMNS_BYTES else {}
    names = [name for name in columns if name != "fixed"]
    if len(columns) == 2 and len(names) == 1 and not names[0].startswith(COMPOSITE):
        return [Entry(names[0], columns[names[0]], columns["fixed"])]
    return _read_mat_by_scipy(path)


def _parse_columns(data: bytes) -> dict[str, np.ndarray]:
    """The columns by name, as ``_mat_column`` writes them and ITK does; {} if there is anything else, which scipy.io reads or refuses."""
    found, position = {}, 0
    while position < len(data):
        if len(data) < position + 20:
            return {}
        kind, rows, columns, is_complex, letters = struct.unpack_from("<5i", data, position)
        start = position + 20 + letters
        position = start + 8 * rows
        if (kind, columns, is_complex) != (0, 1, 0) or rows < 1 or letters < 1 or position > len(data):
            return {}
        found[data[start - letters : start].rstrip(b"\0").decode("latin-1")] = np.frombuffer(data, "<f8", rows, start).astype(np.float64)
    return found


def _read_mat_by_scipy(path: Path) -> list[Entry]:
    """A MATLAB-4 file of any kind of numbers."""
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import matfile_version

    try:
        if matfile_version(path, appendmat=False)[0] != 0:
            raise InputError(f"{path}: a MATLAB file of another version than 4, which ITK writes")
        with warnings.catch_warnings(action="error"):  # of byte orders that no machine has any more
            listed = whosmat(path, appendmat=False)
        names = [name for name, _, _ in listed if name != "fixed"]
        if names and names[0].startswith(COMPOSITE):
            raise InputError(f"{path}: a .mat file does not hold the parts of a CompositeTransform; write it as .h5 or .tfm")
        if len(listed) == 2 and len(names) == 1 and sum(math.prod(shape) for _, shape, _ in listed) <= path.stat().st_size:
            content = {k: np.asarray(v) for k, v in loadmat(path, appendmat=False).items() if not k.startswith("__")}
            if all(v.dtype.kind in "fiu" for v in content.values()):
                return [Entry(names[0], content[names[0]].ravel().astype(np.float64), content["fixed"].ravel().astype(np.float64))]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: not a MATLAB-4 file of ITK: {error}") from error
    raise InputError(
        f"{path}: not a transform of ITK: one array of numbers and 'fixed' are expected; it holds {', '.join(n for n, *_ in listed)}"
    )


def _read_text(path: Path) -> list[Entry]:
    """The transforms of a text file, in the order of the file."""
    found: list[dict[str, str]] = []
    try:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            key, colon, value = line.partition(":")
            if not line.strip() or line.startswith("#"):
                continue
            if key == "Transform":
                found.append({})
            if not colon or key not in ("Transform", "Parameters", "FixedParameters") or key in found[-1]:
                raise ValueError(f"a line that ITK does not write: {line[:40]!r}")
            found[-1][key] = value.strip()
        entries = []
        for fields in found:
            if not fields["Transform"].startswith(COMPOSITE):
                fields["Parameters"], fields["FixedParameters"]  # a transform without numbers is none
            numbers = (np.array(fields.get(k, "").split(), dtype=np.float64) for k in ("Parameters", "FixedParameters"))
            entries.append(Entry(fields["Transform"], *numbers))
        return entries
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path}: not an ITK text transform ({type(error).__name__}: {error})") from error
