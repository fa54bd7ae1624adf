"""Points, curves and surfaces: legacy VTK polydata (ASCII or binary) and PLY."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdmm.io.files import require_file, write_atomically
from rdmm.types import InputError

VTK_TYPES = {"float": ">f4", "double": ">f8", "int": ">i4", "vtkidtype": ">i8", "long": ">i8", "unsigned_char": ">u1", "short": ">i2"}
VTK_TYPES |= {"vtktypeint32": ">i4", "vtktypeint64": ">i8", "unsigned_int": ">u4", "unsigned_long": ">u8", "char": ">i1"}

PLY_TYPES = {"float": "f4", "float32": "f4", "double": "f8", "float64": "f8", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4"}
PLY_TYPES |= {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2"}


@dataclass(frozen=True, eq=False)
class Mesh:
    """The contents of a mesh file: vertices (n, 3), segments (m, 2) or triangles (m, 3) or None, and weights (n,) or None."""

    points: np.ndarray
    cells: np.ndarray | None = None
    weights: np.ndarray | None = None


def is_mesh(path: str | os.PathLike[str]) -> bool:
    """Whether a file name is that of a mesh (.vtk, .ply)."""
    return Path(path).suffix.lower() in (".vtk", ".ply")


def read_mesh(path: str | os.PathLike[str]) -> Mesh:
    """Read vertices and cells of a .vtk or .ply file.

    Polylines become segments; polygons with more than three corners become fans of triangles. A file without lines and
    polygons holds points, weighted by the point data ``weights`` if it has them.

    Raises:
        InputError: not a mesh file, cut short, or without finite points.
    """
    path = require_file(path)
    if not is_mesh(path):
        raise InputError(f"{path}: a mesh is a .vtk (legacy polydata) or .ply file")
    data = path.read_bytes()
    try:
        mesh = _read_vtk(data, path) if path.suffix.lower() == ".vtk" else _read_ply(data, path)
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(f"{path}: cut short or not a mesh ({error})") from error
    if not len(mesh.points):
        raise InputError(f"{path}: no points in it")
    if not np.isfinite(mesh.points).all():
        raise InputError(f"{path}: point {int(np.argmin(np.isfinite(mesh.points).all(1)))} is not finite")
    if mesh.cells is not None and (mesh.cells.min() < 0 or mesh.cells.max() >= len(mesh.points)):
        raise InputError(
            f"{path}: cells name vertices {mesh.cells.min()} to {mesh.cells.max()}; there are {len(mesh.points)}, numbered from 0"
        )
    return mesh


def _to_indices(numbers: np.ndarray, path: Path | None = None) -> np.ndarray:
    """Convert vertex numbers to integers.

    Raises:
        InputError: a number is not finite, or too large. Without ``path`` it is a ValueError, which the caller converts.
    """
    if not np.isfinite(numbers).all() or bool((np.abs(numbers) > 2**53).any()):
        raise InputError(f"{path}: cells must be whole numbers") if path else ValueError("cells must be whole numbers")
    return numbers.astype(np.int64)


class _VtkReader:
    """Reads the lines and numbers of a VTK file one after the other."""

    def __init__(self, data: bytes, binary: bool, path: Path) -> None:
        self.data, self.binary, self.path, self.at = data, binary, path, 0

    def line(self) -> str | None:
        """The next line that is not empty, or None at the end."""
        while self.at < len(self.data):
            end = self.data.find(b"\n", self.at)
            end = len(self.data) if end < 0 else end
            text = self.data[self.at : end].decode("latin-1").strip()
            self.at = end + 1
            if text:
                return text
        return None

    def numbers(self, count: int, kind: str) -> np.ndarray:
        if kind not in VTK_TYPES:
            raise InputError(f"{self.path}: numbers of type {kind!r} cannot be read; there are {', '.join(VTK_TYPES)}")
        if self.binary:
            dtype = np.dtype(VTK_TYPES[kind])
            if self.at + count * dtype.itemsize > len(self.data):
                have = (len(self.data) - self.at) // dtype.itemsize
                raise InputError(f"{self.path}: cut short: {count} numbers expected, {have} found")
            out = np.frombuffer(self.data, dtype, count, self.at)
            self.at += count * dtype.itemsize
            with np.errstate(invalid="ignore"):  # signaling NaNs warn here; read_mesh rejects all NaNs
                return out.astype(np.float64 if dtype.kind == "f" else np.int64)
        words = list(itertools.islice(re.finditer(rb"\S+", self.data[self.at :]), count))
        if len(words) < count:
            raise InputError(f"{self.path}: cut short: {count} numbers expected, {len(words)} found")
        self.at += words[-1].end() if words else 0
        return np.array([w.group() for w in words], dtype=np.float64)


def _read_vtk(data: bytes, path: Path) -> Mesh:
    if not data.startswith(b"# vtk DataFile"):
        raise InputError(f"{path}: not a legacy VTK file (it begins with {data[:12]!r}); XML files (.vtp) are not read")
    header = data.split(b"\n", 4)
    binary = header[2].strip().upper() == b"BINARY"
    reader = _VtkReader(data, binary, path)
    reader.at = sum(len(x) + 1 for x in header[:3])
    if (reader.line() or "").split()[-1:] != ["POLYDATA"]:
        raise InputError(f"{path}: only DATASET POLYDATA is read")
    points, weights, cells, count = np.empty((0, 3)), None, [], 0
    while (text := reader.line()) is not None:
        words = text.split()
        match words[0].upper():
            case "POINTS":
                points = reader.numbers(3 * int(words[1]), words[2].lower()).reshape(-1, 3)
            case "LINES" | "POLYGONS" | "TRIANGLE_STRIPS":
                cells.append(_split_vtk_cells(_to_indices(reader.numbers(int(words[2]), "int"), path), words[0].upper(), path))
            case "VERTICES":
                reader.numbers(int(words[2]), "int")
            case "POINT_DATA":
                count = int(words[1])
            case "CELL_DATA":
                count = -int(words[1])
            case "SCALARS" if count:
                reader.line()  # LOOKUP_TABLE
                values = reader.numbers(abs(count) * (int(words[3]) if len(words) > 3 else 1), words[2].lower())
                if count > 0 and words[1].lower() == "weights":
                    weights = values
            case "VECTORS" | "NORMALS" if count:
                reader.numbers(3 * abs(count), words[2].lower())
            case "FIELD":
                for _ in range(int(words[2])):
                    _, parts, number, kind = (reader.line() or "").split()
                    reader.numbers(int(parts) * int(number), kind.lower())
            case _:
                break  # metadata, which ends the data, is not needed
    return _make_mesh(points, cells, weights, path)


def _split_vtk_cells(flat: np.ndarray, kind: str, path: Path) -> np.ndarray:
    """Cells of a VTK list (size, corners, size, corners ...) as segments or triangles."""
    rows, at = [], 0
    while at < len(flat):
        size = int(flat[at])
        rows.append(flat[at + 1 : at + 1 + size])
        if size < 1 or len(rows[-1]) < size:
            raise InputError(f"{path}: {kind} are cut short")
        at += size + 1
    return _to_simplices(rows, kind)


def _to_simplices(rows: Sequence[np.ndarray], kind: str) -> np.ndarray:
    """Segments of lines and of polygons with two corners; triangles of the others."""
    out: list[Sequence[int]] = []
    for row in rows:
        if kind == "LINES" or len(row) == 2:
            out += itertools.pairwise(row)
        elif kind == "TRIANGLE_STRIPS":
            out += [(row[k], row[k + 1 + k % 2], row[k + 2 - k % 2]) for k in range(len(row) - 2)]
        else:
            out += [(row[0], row[k], row[k + 1]) for k in range(1, len(row) - 1)]
    return np.array(out, dtype=np.int64)


def _make_mesh(points: np.ndarray, cells: Sequence[np.ndarray], weights: np.ndarray | None, path: Path) -> Mesh:
    cells = [c for c in cells if len(c)]
    if len({c.shape[1] for c in cells}) > 1:
        raise InputError(f"{path}: the file holds both lines and surfaces; split it into two")
    return Mesh(points, np.concatenate(cells), None) if cells else Mesh(points, None, weights)


@dataclass
class _PlyReader:
    """Reads the body of a PLY file one element after the other; ``order`` is the byte order, or empty for text."""

    data: bytes
    order: str
    at: int = 0

    def __post_init__(self) -> None:
        self.words = self.data.split() if not self.order else []

    def numbers(self, count: int, kind: str) -> np.ndarray:
        """The next ``count`` numbers."""
        if not self.order:
            self.at += count
            return np.array(self.words[self.at - count : self.at], dtype=np.float64)
        dtype = np.dtype(self.order + PLY_TYPES[kind])
        self.at += count * dtype.itemsize
        return np.frombuffer(self.data, dtype, count, self.at - count * dtype.itemsize).astype(np.float64)

    def lists(self, count: int, properties: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """The next ``count`` lists of vertex numbers."""
        _, length, item = properties[0][:3]
        return [_to_indices(self.numbers(int(self.numbers(1, length)[0]), item)) for _ in range(count)]

    def table(self, count: int, properties: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """The next ``count`` rows, as columns by name."""
        names = [p[1] for p in properties]
        if not self.order:
            return dict(zip(names, self.numbers(count * len(names), "").reshape(count, len(names)).T, strict=True))
        dtype = np.dtype([(p[1], self.order + PLY_TYPES[p[0]]) for p in properties])
        rows = np.frombuffer(self.data, dtype, count, self.at)
        self.at += count * dtype.itemsize
        return {n: rows[n].astype(np.float64) for n in names}


def _read_ply(data: bytes, path: Path) -> Mesh:
    end = data.find(b"end_header")
    if not data.startswith(b"ply") or end < 0:
        raise InputError(f"{path}: not a PLY file (it begins with {data[:12]!r})")
    form, elements = _read_ply_header(data[:end].decode("latin-1"))
    orders = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
    if form not in orders:
        raise InputError(f"{path}: PLY format {form!r} cannot be read; there are {', '.join(orders)}")
    body = _PlyReader(data[data.index(b"\n", end) + 1 :], orders[form])
    points = np.empty((0, 3))
    faces: list[np.ndarray] = []
    for name, count, properties in elements:
        if not any(p[0] == "list" for p in properties):
            columns = body.table(count, properties)
            points = np.stack([columns[c] for c in "xyz"], 1) if name == "vertex" else points
        elif len(properties) > 1:
            raise InputError(f"{path}: element {name} has other properties beside its list; write faces with their list alone")
        else:
            found = body.lists(count, properties)
            faces = found if name == "face" else faces
    return _make_mesh(points, [_to_simplices(faces, "POLYGONS")] if faces else [], None, path)


def _read_ply_header(text: str) -> tuple[str, list[tuple[str, int, list[list[str]]]]]:
    """The format, and of each element the name, count and properties."""
    form, elements = "", []  # type: ignore[var-annotated]
    for words in map(str.split, text.splitlines()):
        if words[:1] == ["format"]:
            form = words[1]
        elif words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"]:
            elements[-1][2].append(words[1:])
    return form, elements


def write_mesh(
    path: str | os.PathLike[str], points: np.ndarray, cells: np.ndarray | None, data: dict[str, np.ndarray] | None = None
) -> None:
    """Write vertices (n, 2 or 3) and cells as legacy VTK polydata, binary, with columns (n,) or (n, 3) of point data."""
    n = len(points)
    full = np.zeros((n, 3), ">f4")
    full[:, : points.shape[1]] = points
    if cells is None:
        kind, cells = "VERTICES", np.arange(n).reshape(-1, 1)
    else:
        kind = "LINES" if cells.shape[1] == 2 else "POLYGONS"
    table = np.column_stack([np.full(len(cells), cells.shape[1]), cells]).astype(">i4")
    out = [b"# vtk DataFile Version 3.0\nrdmm\nBINARY\nDATASET POLYDATA\n", f"POINTS {n} float\n".encode(), full.tobytes()]
    out += [f"\n{kind} {len(cells)} {table.size}\n".encode(), table.tobytes(), f"\nPOINT_DATA {n}\n".encode()]
    for name, values in (data or {}).items():
        head = f"SCALARS {name} float\nLOOKUP_TABLE default\n" if values.ndim == 1 else f"VECTORS {name} float\n"
        column = values if values.ndim == 1 or values.shape[1] == 3 else np.column_stack([values, np.zeros(n)])
        out += [head.encode(), column.astype(">f4").tobytes(), b"\n"]
    write_atomically(path, b"".join(out))
