"""Files of points, curves and surfaces: the reader and the writer of each format, by the ending of the name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rdmm.io.files import finite_float32, require_ending, require_file, require_finite_result, write_atomically
from rdmm.io.meshes import MESH_ENDINGS, is_mesh
from rdmm.io.meshes.gifti import parse_gifti, render_gifti
from rdmm.io.meshes.mesh import FLIP, Mesh, PolyData, as_rows, as_vertices
from rdmm.io.meshes.obj import parse_obj, render_obj
from rdmm.io.meshes.ply import parse_ply, render_ply
from rdmm.io.meshes.stl import parse_stl, render_stl
from rdmm.io.meshes.tracts import parse_tracts, render_tracts
from rdmm.io.meshes.vtk import parse_vtk, render_vtk
from rdmm.io.meshes.vtp import parse_vtp, render_vtp
from rdmm.runtime.resources import require_memory
from rdmm.types import ConfigError, InputError, option

log = logging.getLogger(__name__)

MEMORY_PER_BYTE = 20
"""Bytes of memory that reading a byte of a file takes at most. Measured: 5 to 12 for text, 8 for binary VTK, 16 for faces of binary PLY."""

READERS: dict[str, Callable[[bytes], PolyData]] = {
    ".vtk": parse_vtk,
    ".vtp": parse_vtp,
    ".ply": parse_ply,
    ".stl": parse_stl,
    ".obj": parse_obj,
    ".gii": parse_gifti,
    ".trk": lambda data: parse_tracts(data, ".trk"),
    ".tck": lambda data: parse_tracts(data, ".tck"),
}

WRITERS: dict[str, Callable[[PolyData, str], tuple[bytes, list[str]]]] = {
    ".vtk": lambda data, frame: (render_vtk(data, frame), []),
    ".vtp": lambda data, frame: (render_vtp(data, frame), []),
    ".ply": render_ply,
    ".stl": render_stl,
    ".obj": render_obj,
    ".gii": lambda data, _: render_gifti(data),
    ".trk": lambda data, _: render_tracts(data, ".trk"),
    ".tck": lambda data, _: render_tracts(data, ".tck"),
}

STREAMLINES = (".trk", ".tck")

RAS_ENDINGS = (".gii", *STREAMLINES)
"""Formats whose coordinates are RAS+ by definition."""


def read_mesh(path: str | os.PathLike[str], features: str | None = None) -> Mesh:
    """Read vertices (RAS+) and cells of a mesh file. A file that says SPACE=LPS, as Slicer writes, is converted.

    Polylines become segments; polygons with more than three corners become fans of triangles. A file without lines and
    polygons holds points, weighted by the point data ``weights`` if it has them.

    Args:
        features: name of the point data that go along as features; None: none.

    Raises:
        InputError: not a mesh file, damaged, cut short, without finite points or these features, or with lines together with surfaces.
        ResourceError: the file is too large for the free memory.
    """
    data = read_polydata(path)
    try:
        mesh = data.mesh(features)
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from error
    if mesh.cells is not None and mesh.weights is not None:
        log.warning("%s: the weights of its points are not used: curves and surfaces are weighted by length and area", path)
        mesh = replace(mesh, weights=None)
    return mesh


def read_polydata(path: str | os.PathLike[str], *, lps: bool = False) -> PolyData:
    """Read all of a mesh file: vertices (RAS+), cells, and their data.

    Args:
        lps: the file is in LPS+ and does not say so.

    Raises:
        ConfigError: ``lps`` of a file that declares its frame, or whose format is RAS+ by definition.
        InputError: not a mesh file, damaged, cut short, or without finite points.
        ResourceError: the file is too large for the free memory.
    """
    path = require_file(path)
    ending = path.suffix.lower()
    if not is_mesh(path):
        raise InputError(f"{path}: a mesh is a file {' or '.join(MESH_ENDINGS)}")
    size = path.stat().st_size
    require_memory(MEMORY_PER_BYTE * size, f"{path}: a mesh file of {size} bytes", "reduce its number of vertices")
    try:
        data = READERS[ending](path.read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if lps and (ending in RAS_ENDINGS or data.frame):
        raise ConfigError(f"{path}: its frame is known, {data.frame or 'RAS'}; leave out {option('lps')}")
    return replace(data, points=data.points * FLIP, frame="LPS") if lps else data


def write_polydata(path: str | os.PathLike[str], data: PolyData) -> None:
    """Write a mesh in the format of the file's name, in LPS+ where its ``frame`` is LPS and the format can declare it, else in RAS+.

    A warning names what the format cannot hold.

    Raises:
        ConfigError: the name has another ending, or a .trk is written of something else.
        InputError: the format holds surfaces or lines only, and there are none.
        OutputError: the file cannot be written, or a coordinate is not finite.
    """
    path = require_ending(path, MESH_ENDINGS, "a mesh")
    ending = path.suffix.lower()
    require_finite_result(path, data.points)
    frame = "RAS" if ending in RAS_ENDINGS else data.frame or "RAS"
    if ending not in STREAMLINES:
        data = data.without_single_points()
    try:
        content, lost = WRITERS[ending](replace(data, points=data.points * FLIP if frame == "LPS" else data.points), frame)
    except (InputError, ConfigError) as error:
        raise type(error)(f"{path}: {error}") from error
    if data.left_out:
        log.warning("%s: without %s, which were not read, or belong to the old place", path, ", ".join(data.left_out))
    if lost:
        log.warning("%s: without %s: %s files cannot hold them", path, ", ".join(dict.fromkeys(lost)), ending)
    write_atomically(path, content)


def write_mesh(
    path: str | os.PathLike[str], points: np.ndarray, cells: np.ndarray | None, data: dict[str, np.ndarray] | None = None
) -> None:
    """Write vertices (n, 2 or 3) and cells as legacy VTK polydata, binary, with columns (n,) or (n, 3) of point data.

    Raises:
        ConfigError: the name does not end in .vtk.
        OutputError: the file cannot be written, or a number is not finite.
    """
    path = require_ending(path, [".vtk"], "a shape")
    vertices = _in_space(finite_float32(path, np.asarray(points)))
    columns = {name: finite_float32(path, np.asarray(values)) for name, values in (data or {}).items()}
    columns = {name: _in_space(x) if x.ndim > 1 else x for name, x in columns.items()}
    lists = as_vertices(len(points)) if cells is None else as_rows("LINES" if cells.shape[1] == 2 else "POLYGONS", cells)
    write_atomically(path, render_vtk(PolyData(vertices, [lists], columns), "RAS"))


def _in_space(points: np.ndarray) -> np.ndarray:
    """Points or vectors (n, 2 or 3) with a third coordinate, 0 where there is none."""
    return np.pad(points, ((0, 0), (0, 3 - points.shape[1])))
