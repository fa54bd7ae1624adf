"""Points, curves and surfaces: VTK, PLY, STL, OBJ, GIFTI, and the streamlines of TrackVis and MRtrix. Other names are loaded when they are
first used: a registration of images only asks whether a file is a mesh."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rdmm.lazy import lazy_names

_names, __getattr__ = lazy_names(
    "rdmm.io.meshes",
    {"files": ["read_mesh", "read_polydata", "write_mesh", "write_polydata"], "mesh": ["Mesh", "PolyData", "as_vertices"]},
)
__all__ = ["MESH_ENDINGS", "is_mesh", *_names]  # noqa: PLE0604

if TYPE_CHECKING:
    from rdmm.io.meshes.files import read_mesh, read_polydata, write_mesh, write_polydata
    from rdmm.io.meshes.mesh import Mesh, PolyData, as_vertices

MESH_ENDINGS = (".vtk", ".vtp", ".ply", ".stl", ".obj", ".gii", ".trk", ".tck")


def is_mesh(path: str | os.PathLike[str]) -> bool:
    """Whether a file name is that of a mesh, or of streamlines (MESH_ENDINGS)."""
    return Path(path).suffix.lower() in MESH_ENDINGS
