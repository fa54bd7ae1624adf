"""STL: triangles alone, binary or text. Equal corners are one vertex."""

from __future__ import annotations

import re

import numpy as np

from rdmm.io.meshes.mesh import PolyData, as_rows, make_polydata
from rdmm.types import InputError

FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])

VERTEX = re.compile(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", re.IGNORECASE)


def parse_stl(data: bytes) -> PolyData:
    """The contents of an STL file. Normals are left out: the writer computes them.

    Raises:
        InputError: not such a file, or cut short.
    """
    count = int.from_bytes(data[80:84], "little")
    if len(data) >= 84 and len(data) == 84 + count * FACET.itemsize:
        facets = np.frombuffer(data, FACET, count, 84)
        corners, title = facets["corners"].reshape(-1, 3).astype(np.float64), data[:80]
        attributes = {"attribute": facets["attribute"].astype(np.uint16)} if facets["attribute"].any() else {}
    elif re.match(rb"\s*solid\b", data, re.IGNORECASE):
        corners, title, attributes = _read_text(data), data.lstrip().split(b"\n", 1)[0], {}
    else:
        raise InputError(f"not an STL file, or cut short: {len(data)} bytes, of which the header states {count} facets of {FACET.itemsize}")
    points, cells = _merged(corners)
    spaces = [s.decode() for s in re.findall(rb"SPACE=([A-Za-z]+)", title)]
    return make_polydata(points, [as_rows("POLYGONS", cells.reshape(-1, 3))], spaces=spaces, cell_data=attributes)


def _read_text(data: bytes) -> np.ndarray:
    """The corners (3 m, 3) of the m facets of a text."""
    words = VERTEX.findall(data)
    if len(words) % 3 or not re.search(rb"endsolid", data, re.IGNORECASE):
        raise InputError(f"cut short: {len(words)} vertices, which must be three of each facet, and the line endsolid after the last")
    try:
        return np.array(words, dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        raise InputError(f"damaged: {error}") from error


def _merged(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different points among the corners, in the order of their first appearance, and the number of the point at each corner."""
    _, first, inverse = np.unique(corners, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return corners[np.sort(first)], rank[inverse.ravel()]


def render_stl(data: PolyData, frame: str) -> tuple[bytes, list[str]]:
    """A binary file whose header declares the frame, and the names of what it cannot hold.

    Raises:
        InputError: there are no surfaces.
    """
    rows, columns = data.part("POLYGONS")
    if not rows:
        raise InputError("an .stl file holds triangles only, and there are none; write .vtk, .vtp or .ply")
    pieces = [np.stack([np.broadcast_to(row[0], len(row) - 2), row[1:-1], row[2:]], 1) for row in rows]
    facets = np.zeros(sum(map(len, pieces)), FACET)
    facets["corners"] = a = data.points[np.concatenate(pieces)]
    normals = np.cross(a[:, 1] - a[:, 0], a[:, 2] - a[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    facets["normal"] = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
    attribute = columns.pop("attribute", None)
    if attribute is not None and attribute.dtype == np.uint16:
        facets["attribute"] = np.repeat(attribute, [len(p) for p in pieces])
    lost = [*data.point_data, *columns, *(["lines"] if data.part("LINES")[0] else [])]
    return f"rdmm SPACE={frame}".encode().ljust(80) + len(facets).to_bytes(4, "little") + facets.tobytes(), lost
