"""Points, curves and surfaces: legacy VTK polydata (ASCII or binary) and PLY."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from rdmm.io.files import finite_float32, require_ending, require_file, write_atomically
from rdmm.io.meshes.mesh import Mesh
from rdmm.io.meshes.ply import parse_ply
from rdmm.io.meshes.vtk import parse_vtk, render_vtk
from rdmm.runtime.resources import require_memory
from rdmm.types import InputError

__all__ = ["Mesh", "is_mesh", "read_mesh", "write_mesh"]

log = logging.getLogger(__name__)

MEMORY_PER_BYTE = 20
"""Bytes of memory that reading a byte of a file takes at most. Measured: 5 to 12 for text, 8 for binary VTK, 16 for faces of binary PLY."""


def is_mesh(path: str | os.PathLike[str]) -> bool:
    """Whether a file name is that of a mesh (.vtk, .ply)."""
    return Path(path).suffix.lower() in (".vtk", ".ply")


def read_mesh(path: str | os.PathLike[str]) -> Mesh:
    """Read vertices (RAS+) and cells of a .vtk or .ply file. A file that says SPACE=LPS, as Slicer writes, is converted.

    Polylines become segments; polygons with more than three corners become fans of triangles. A file without lines and
    polygons holds points, weighted by the point data ``weights`` if it has them.

    Raises:
        InputError: not a mesh file, damaged, cut short, or without finite points.
        ResourceError: the file is too large for the free memory.
    """
    path = require_file(path)
    if not is_mesh(path):
        raise InputError(f"{path}: a mesh is a .vtk (legacy polydata) or .ply file")
    size = path.stat().st_size
    require_memory(MEMORY_PER_BYTE * size, f"{path}: a mesh file of {size} bytes", "reduce its number of vertices")
    data = path.read_bytes()
    try:
        mesh = parse_vtk(data) if path.suffix.lower() == ".vtk" else parse_ply(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if mesh.cells is not None and mesh.weights is not None:
        log.warning("%s: the weights of its points are not used: curves and surfaces are weighted by length and area", path)
        mesh = replace(mesh, weights=None)
    return mesh


def write_mesh(
    path: str | os.PathLike[str], points: np.ndarray, cells: np.ndarray | None, data: dict[str, np.ndarray] | None = None
) -> None:
    """Write vertices (n, 2 or 3) and cells as legacy VTK polydata, binary, with columns (n,) or (n, 3) of point data.

    Raises:
        ConfigError: the name does not end in .vtk.
        OutputError: the file cannot be written, or a number is not finite.
    """
    path = require_ending(path, [".vtk"], "a shape")
    for values in (points, *(data or {}).values()):
        finite_float32(path, np.asarray(values))
    write_atomically(path, render_vtk(points, cells, data or {}))
