"""Legacy VTK polydata, versions 1.0 to 5.1, ASCII or binary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

import numpy as np

from rdmm.io.meshes.body import Body, to_indices
from rdmm.io.meshes.mesh import Cells, Kind, Mesh, in_ras, make_mesh
from rdmm.types import InputError

TYPES = {"float": ">f4", "double": ">f8", "vtkidtype": ">i4"}  # VTK writes its vtkIdType as 32-bit integers
TYPES |= {"char": ">i1", "signed_char": ">i1", "unsigned_char": ">u1", "short": ">i2", "unsigned_short": ">u2"}
TYPES |= {"int": ">i4", "unsigned_int": ">u4", "long": ">i8", "unsigned_long": ">u8", "long_long": ">i8", "unsigned_long_long": ">u8"}
TYPES |= {f"vtktype{sign}int{8 * n}": f">{letter}{n}" for sign, letter in (("", "i"), ("u", "u")) for n in (1, 2, 4, 8)}

NEWEST = (5, 1)

PARTS = {"NORMALS": 3, "VECTORS": 3, "TENSORS": 9, "TENSORS6": 6, "GLOBAL_IDS": 1, "PEDIGREE_IDS": 1, "EDGE_FLAGS": 1}
"""Components of the attributes that are not needed."""

SECTIONS = {"POINTS", *get_args(Kind), "POINT_DATA", "CELL_DATA", "FIELD", "SCALARS", "COLOR_SCALARS", "LOOKUP_TABLE"}
SECTIONS |= {"TEXTURE_COORDINATES", *PARTS}


def parse_vtk(data: bytes) -> Mesh:
    """The contents of a legacy VTK file.

    Raises:
        InputError: not such a file, of a newer version, damaged, or with sections that are not known.
    """
    version = re.match(rb"# vtk DataFile Version (\d{1,4})\.(\d{1,4})[ \t\r]*\n", data)
    if not version:
        raise InputError(f"not a legacy VTK file (it begins with {data[:12]!r}); XML files (.vtp) are not read")
    number = (int(version[1]), int(version[2]))
    if not (1, 0) <= number <= NEWEST:
        raise InputError(f"VTK version {number[0]}.{number[1]} is not known; write version 4.2 or 5.1")
    body = Body(data, version.end())
    title, form = body.line() or "", (body.line() or "").upper()
    if form not in ("ASCII", "BINARY"):
        raise InputError(f"the third line must be ASCII or BINARY, not {form[:20]!r}")
    reader = _Reader(body, form == "BINARY", number[0] >= 5)
    dataset = reader.header() or ""
    if dataset.upper().split() != ["DATASET", "POLYDATA"]:
        raise InputError(f"only DATASET POLYDATA is read, not {dataset[:40]!r}")
    reader.spaces += re.findall(r"SPACE=(\w+)", title)
    while (text := reader.header()) is not None:
        reader.section(text.split())
    return make_mesh(in_ras(reader.points, reader.spaces), reader.cells, reader.weights)


class _Reader:
    """Reads the sections of a VTK file one after the other."""

    def __init__(self, body: Body, binary: bool, has_offsets: bool) -> None:
        self.body, self.binary, self.has_offsets = body, binary, has_offsets
        self.points = np.empty((0, 3))
        self.cells: list[Cells] = []
        self.weights: np.ndarray | None = None
        self.spaces: list[str] = []
        self.seen: set[str] = set()
        self.scope, self.count, self.parts = "", 0, 1

    def header(self) -> str | None:
        """The next line that is neither empty nor part of METADATA; None at the end."""
        while (text := self.body.line()) is not None:
            if text == "METADATA":
                self._skip_metadata()
            elif text:
                return text
        return None

    def _skip_metadata(self) -> None:
        """Skip what is known of the last array, up to the next empty line; the names of its components may be empty."""
        while text := self.body.line():
            if text == "COMPONENT_NAMES":
                for _ in range(self.parts):
                    self.body.line()
            elif text.split()[0] in SECTIONS:
                raise InputError(f"no empty line between METADATA and {text[:40]!r}")

    def numbers(self, rows: int, parts: int, kind: str) -> np.ndarray:
        """The next ``rows`` times ``parts`` numbers."""
        self.parts, count, kind = parts, rows * parts, kind.lower()
        if kind == "bit":
            return self.body.binary(-(-count // 8), np.dtype("u1")) if self.binary else self.body.text(count)
        if kind not in TYPES:
            raise InputError(f"numbers of type {kind!r} cannot be read; there are {', '.join(TYPES)}")
        return self.body.binary(count, np.dtype(TYPES[kind])) if self.binary else self.body.text(count)

    def values(self, rows: int, parts: int, kind: str) -> np.ndarray | list[str]:
        """The next ``rows`` times ``parts`` numbers or texts."""
        if kind.lower() not in ("string", "utf8_string"):
            return self.numbers(rows, parts, kind)
        self.parts = parts
        return self._strings(rows * parts)

    def _strings(self, count: int) -> list[str]:
        """The next ``count`` texts: a line each, or in a binary file bytes after their number."""
        self.body.require(count, 1, "texts")
        if not self.binary:
            return [self.body.line() or "" for _ in range(count)]
        out = []
        for _ in range(count):
            first = self.body.skip(1)
            size = 1 << (3 - (first[0] >> 6))  # the highest two bits say how many bytes the length takes: 8, 4, 2 or 1
            length = int.from_bytes(first + self.body.skip(size - 1), "big") & ((1 << (8 * size - 2)) - 1)
            out.append(self.body.skip(length).decode("latin-1"))
        return out

    def section(self, words: Sequence[str]) -> None:
        """Read one section, of which ``words`` are the header."""
        name = words[0].upper()
        if name in ("POINTS", *get_args(Kind), "POINT_DATA", "CELL_DATA"):
            if name in self.seen:
                raise InputError(f"{name} occurs twice")
            self.seen.add(name)
        match name:
            case "POINTS":
                self.points = self.numbers(_whole(words, 1), 3, _word(words, 2)).reshape(-1, 3).astype(np.float64)
            case "VERTICES" | "LINES" | "POLYGONS" | "TRIANGLE_STRIPS":
                self.cells.append((self._cells if self.has_offsets else self._sized_cells)(name, words))
            case "POINT_DATA" | "CELL_DATA":
                self.scope, self.count = name, _whole(words, 1)
                if name == "POINT_DATA" and self.count != len(self.points):
                    raise InputError(f"POINT_DATA of {self.count} points, but there are {len(self.points)}")
            case "FIELD":
                for _ in range(_whole(words, 2)):
                    self._field_array()
            case "LOOKUP_TABLE":
                self._colors(_whole(words, 2), 4)
            case _ if name in SECTIONS and self.scope:
                self._attribute(name, words)
            case _:
                raise InputError(f"unknown section {words[0][:40]!r} before byte {self.body.at}")

    def _sized_cells(self, kind: Kind, words: Sequence[str]) -> Cells:
        """Cells before version 5: the number of corners before the corners of each cell."""
        cells, size = _whole(words, 1), _whole(words, 2)
        flat = to_indices(self.numbers(size, 1, "int"))
        starts, at = [], 0
        while at < size:
            starts.append(at)
            if flat[at] < 0:
                raise InputError(f"{kind}: cell {len(starts) - 1} has {flat[at]} corners")
            at += int(flat[at]) + 1
        if at != size or len(starts) != cells:
            raise InputError(f"{kind} are cut short: {cells} cells in {size} numbers expected, {len(starts)} cells in {at} numbers found")
        offsets = np.array([*starts, size], dtype=np.int64) - np.arange(cells + 1)
        return Cells(kind, offsets, np.delete(flat, starts))

    def _cells(self, kind: Kind, words: Sequence[str]) -> Cells:
        """Cells of version 5: the place of each cell in the list of all corners, then this list."""
        offsets, corners = (self._named_array(name, _whole(words, k)) for k, name in ((1, "OFFSETS"), (2, "CONNECTIVITY")))
        offsets = offsets if len(offsets) else np.zeros(1, np.int64)
        if offsets[0] != 0 or offsets[-1] != len(corners) or (np.diff(offsets) < 0).any():
            raise InputError(f"{kind}: OFFSETS must rise from 0 to the {len(corners)} numbers of CONNECTIVITY")
        return Cells(kind, offsets, corners)

    def _named_array(self, name: str, count: int) -> np.ndarray:
        words = (self.header() or "").split()
        if words[:1] != [name]:
            raise InputError(f"{name} expected before byte {self.body.at}, not {' '.join(words)[:40]!r}")
        return to_indices(self.numbers(count, 1, _word(words, 1)))

    def _field_array(self) -> None:
        words = (self.header() or "").split()
        if words == ["NULL_ARRAY"]:
            return
        name, parts = _word(words, 0), _whole(words, 1)
        values = self.values(_whole(words, 2), parts, _word(words, 3))
        if not isinstance(values, list):
            self._keep(name, values, parts)
        elif name.upper() == "SPACE":
            self.spaces += values

    def _attribute(self, name: str, words: Sequence[str]) -> None:
        """Read an attribute of the points or cells; the weights of points are kept."""
        if name == "COLOR_SCALARS":
            self._colors(self.count, _whole(words, 2))
        elif name == "SCALARS":
            parts = _whole(words, 3) if len(words) > 3 else 1
            if (table := self.header() or "").split()[:1] != ["LOOKUP_TABLE"]:
                raise InputError(f"the line LOOKUP_TABLE is missing after SCALARS; {table[:40]!r} found")
            self._keep(_word(words, 1), self.numbers(self.count, parts, _word(words, 2)), parts)
        else:
            parts, kind = (_whole(words, 2), 3) if name == "TEXTURE_COORDINATES" else (PARTS[name], 2)
            self.values(self.count, parts, _word(words, kind))

    def _colors(self, count: int, parts: int) -> None:
        self.numbers(count, parts, "unsigned_char" if self.binary else "float")

    def _keep(self, name: str, values: np.ndarray, parts: int) -> None:
        if self.scope != "POINT_DATA" or name.lower() != "weights":
            return
        if parts != 1 or self.weights is not None:
            raise InputError(f"the point data 'weights' {'have ' + str(parts) + ' components' if parts != 1 else 'occur twice'}")
        self.weights = values.astype(np.float64)


def _word(words: Sequence[str], k: int) -> str:
    if len(words) <= k:
        raise InputError(f"cut short: the line {' '.join(words)[:60]!r} needs at least {k + 1} words")
    return words[k]


def _whole(words: Sequence[str], k: int) -> int:
    """Word k of a header, a count."""
    text = _word(words, k)
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise InputError(f"the line {' '.join(words)[:60]!r} must hold a count >= 0 in place {k + 1}, not {text[:20]!r}")
    return int(text)


def render_vtk(points: np.ndarray, cells: np.ndarray | None, data: dict[str, np.ndarray]) -> bytes:
    """A file of version 3.0, binary, that declares RAS: without this Slicer takes LPS. The arguments are those of ``write_mesh``."""
    n = len(points)
    full = np.zeros((n, 3), ">f4")
    full[:, : points.shape[1]] = points
    if cells is None:
        kind, cells = "VERTICES", np.arange(n).reshape(-1, 1)
    else:
        kind = "LINES" if cells.shape[1] == 2 else "POLYGONS"
    table = np.column_stack([np.full(len(cells), cells.shape[1]), cells]).astype(">i4")
    out = [b"# vtk DataFile Version 3.0\nrdmm SPACE=RAS\nBINARY\nDATASET POLYDATA\n", f"POINTS {n} float\n".encode(), full.tobytes()]
    out += [f"\n{kind} {len(cells)} {table.size}\n".encode(), table.tobytes(), f"\nPOINT_DATA {n}\n".encode()]
    for name, values in data.items():
        head = f"SCALARS {name} float\nLOOKUP_TABLE default\n" if values.ndim == 1 else f"VECTORS {name} float\n"
        column = values if values.ndim == 1 or values.shape[1] == 3 else np.column_stack([values, np.zeros(n)])
        out += [head.encode(), column.astype(">f4").tobytes(), b"\n"]
    return b"".join(out)
