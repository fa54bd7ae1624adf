"""Legacy VTK polydata, versions 1.0 to 5.1, ASCII or binary; of unstructured grids, the points, lines and surfaces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args
from urllib.parse import quote, unquote

import numpy as np

from rdmm.io.meshes.body import Body, to_indices, typed
from rdmm.io.meshes.mesh import Cells, Kind, PolyData, make_polydata
from rdmm.types import InputError

TYPES = {"float": ">f4", "double": ">f8", "vtkidtype": ">i4"}  # VTK writes its vtkIdType as 32-bit integers
TYPES |= {"char": ">i1", "signed_char": ">i1", "unsigned_char": ">u1", "short": ">i2", "unsigned_short": ">u2"}
TYPES |= {"int": ">i4", "unsigned_int": ">u4", "long": ">i8", "unsigned_long": ">u8", "long_long": ">i8", "unsigned_long_long": ">u8"}
TYPES |= {f"vtktype{sign}int{8 * n}": f">{letter}{n}" for sign, letter in (("", "i"), ("u", "u")) for n in (1, 2, 4, 8)}

NEWEST = (5, 1)

WRITTEN = {"f4": "float", "f8": "double", "i1": "char", "u1": "unsigned_char", "i2": "short", "u2": "unsigned_short"}
WRITTEN |= {"i4": "int", "u4": "unsigned_int", "i8": "vtktypeint64", "u8": "vtktypeuint64"}

PARTS = {"NORMALS": 3, "VECTORS": 3, "TENSORS": 9, "TENSORS6": 6, "GLOBAL_IDS": 1, "PEDIGREE_IDS": 1, "EDGE_FLAGS": 1}
"""Components of the attributes that state no number of them."""

SECTIONS = {"POINTS", *get_args(Kind), "POINT_DATA", "CELL_DATA", "FIELD", "SCALARS", "COLOR_SCALARS", "LOOKUP_TABLE"}
SECTIONS |= {"TEXTURE_COORDINATES", *PARTS}


KINDS: dict[int, Kind] = {1: "VERTICES", 2: "VERTICES", 3: "LINES", 4: "LINES", 5: "POLYGONS", 6: "TRIANGLE_STRIPS", 7: "POLYGONS"}
KINDS |= {9: "POLYGONS"}
"""The cells of unstructured grids that are no volumes, by VTK's number."""

SAFE = "!#$&'()*+,-./:;<=>?@[]^_`{|}~\\"
"""What names may hold beside letters and digits; VTK writes all else as %20."""


def parse_vtk(data: bytes) -> PolyData:
    """The contents of a legacy VTK file; normals are left out, since they do not move as points do.

    Raises:
        InputError: not such a file, of a newer version, damaged, or with sections that are not known.
    """
    version = re.match(rb"# vtk DataFile Version (\d{1,4})\.(\d{1,4})[ \t\r]*\n", data)
    if not version:
        raise InputError(f"not a legacy VTK file (it begins with {data[:12]!r}); name XML files .vtp")
    number = (int(version[1]), int(version[2]))
    if not (1, 0) <= number <= NEWEST:
        raise InputError(f"VTK version {number[0]}.{number[1]} is not known; write version 4.2 or 5.1")
    body = Body(data, version.end())
    title, form = body.line() or "", (body.line() or "").upper()
    if form not in ("ASCII", "BINARY"):
        raise InputError(f"the third line must be ASCII or BINARY, not {form[:20]!r}")
    reader = _Reader(body, form == "BINARY", number[0] >= 5)
    dataset = reader.header() or ""
    if dataset.upper().split() not in (["DATASET", "POLYDATA"], ["DATASET", "UNSTRUCTURED_GRID"]):
        raise InputError(f"DATASET POLYDATA or UNSTRUCTURED_GRID is read, not {dataset[:40]!r}")
    reader.spaces += re.findall(r"SPACE=(\w+)", title)
    while (text := reader.header()) is not None:
        reader.section(text.split())
    cells, order = _by_kind(reader.mixed, reader.types) if reader.mixed is not None else (reader.cells, slice(None))
    return make_polydata(
        reader.points,
        cells,
        spaces=reader.spaces,
        point_data=reader.data["POINT_DATA"],
        cell_data={name: x[order] for name, x in reader.data["CELL_DATA"].items()},
        left_out=reader.left_out,
    )


class _Reader:
    """Reads the sections of a VTK file one after the other."""

    def __init__(self, body: Body, binary: bool, has_offsets: bool) -> None:
        self.body, self.binary, self.has_offsets = body, binary, has_offsets
        self.points = np.empty((0, 3))
        self.cells: list[Cells] = []
        self.mixed: Cells | None = None  # the cells of an unstructured grid, and their types
        self.types = np.empty(0, np.int64)
        self.data: dict[str, dict[str, np.ndarray]] = {"POINT_DATA": {}, "CELL_DATA": {}}
        self.left_out: list[str] = []
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
            case "CELLS":
                self.mixed = (self._cells if self.has_offsets else self._sized_cells)("POLYGONS", words)
            case "CELL_TYPES":
                self.types = to_indices(self.numbers(_whole(words, 1), 1, "int"))
            case "POINT_DATA" | "CELL_DATA":
                self.scope, self.count = name, _whole(words, 1)
                if name == "POINT_DATA" and self.count != len(self.points):
                    raise InputError(f"POINT_DATA of {self.count} points, but there are {len(self.points)}")
            case "FIELD":
                for _ in range(_whole(words, 2)):
                    self._field_array()
            case "LOOKUP_TABLE":
                self._colors(_whole(words, 2), 4)
                self.left_out.append("lookup tables")
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
        name, parts, kind = _word(words, 0), _whole(words, 1), _word(words, 3)
        values = self.values(_whole(words, 2), parts, kind)
        if isinstance(values, list) and name.upper() == "SPACE":
            self.spaces += values
        else:
            self._keep(name, values, parts, kind)

    def _attribute(self, name: str, words: Sequence[str]) -> None:
        """Read an attribute of the points or cells."""
        if name == "COLOR_SCALARS":
            parts = _whole(words, 2)
            self._keep(_word(words, 1), self._colors(self.count, parts), parts, "unsigned_char")
        elif name == "SCALARS":
            parts = _whole(words, 3) if len(words) > 3 else 1
            if (table := self.header() or "").split()[:1] != ["LOOKUP_TABLE"]:
                raise InputError(f"the line LOOKUP_TABLE is missing after SCALARS; {table[:40]!r} found")
            self._keep(_word(words, 1), self.numbers(self.count, parts, _word(words, 2)), parts, _word(words, 2))
        else:
            parts, at = (_whole(words, 2), 3) if name == "TEXTURE_COORDINATES" else (PARTS[name], 2)
            values = self.values(self.count, parts, _word(words, at))
            self._keep("normals" if name == "NORMALS" else _word(words, 1), values, parts, _word(words, at))

    def _colors(self, count: int, parts: int) -> np.ndarray:
        """Colors from 0 to 255; a text holds them from 0 to 1."""
        values = self.numbers(count, parts, "unsigned_char" if self.binary else "float")
        return values if self.binary else np.round(255 * np.nan_to_num(values)).clip(0, 255)

    def _keep(self, name: str, values: np.ndarray | list[str], parts: int, kind: str) -> None:
        """Keep a column of data of the points or cells. Texts, bits and normals are left out."""
        if isinstance(values, list) or not parts or kind.lower() == "bit" or name.lower() == "normals":
            self.left_out.append(name)
        elif self.scope:
            columns, name = self.data[self.scope], unquote(name)
            if name in columns:
                raise InputError(f"the data {name!r} occur twice in {self.scope}")
            columns[name] = typed(values, np.dtype(TYPES[kind.lower()])).reshape((-1, parts) if parts != 1 else -1)


def _by_kind(mixed: Cells, types: np.ndarray) -> tuple[list[Cells], np.ndarray]:
    """The cells of an unstructured grid as lists, one of each kind, and the number of each cell of the lists in the grid."""
    if len(types) != mixed.count:
        raise InputError(f"{len(types)} CELL_TYPES of {mixed.count} CELLS")
    if others := sorted(set(types.tolist()) - set(KINDS)):
        raise InputError(f"cells of VTK's type {others[0]} are volumes or curved; extract the surface first (vtkGeometryFilter)")
    kinds, rows, lists, order = [KINDS[t] for t in types.tolist()], mixed.rows(), [], []
    for kind in get_args(Kind):
        picked = [k for k, one in enumerate(kinds) if one == kind]
        if picked:
            lists.append(Cells(kind, np.cumsum([0, *(len(rows[k]) for k in picked)]), np.concatenate([rows[k] for k in picked])))
        order += picked
    return lists, np.array(order, np.int64)


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


def render_vtk(data: PolyData, frame: str) -> bytes:
    """A file of version 3.0, binary, that declares the frame of its points: without this Slicer takes LPS.

    Args:
        data: its points are in ``frame`` already, in the type that is written.
    """
    n, kind = len(data.points), WRITTEN[data.points.dtype.str[1:]]
    out = [f"# vtk DataFile Version 3.0\nrdmm SPACE={frame}\nBINARY\nDATASET POLYDATA\nPOINTS {n} {kind}\n".encode(), _bytes(data.points)]
    for cells in data.cells:
        sized = np.insert(cells.corners, cells.offsets[:-1], np.diff(cells.offsets)).astype("i4")
        out += [f"\n{cells.kind} {cells.count} {sized.size}\n".encode(), _bytes(sized)]
    for scope, count, columns in (("POINT_DATA", n, data.point_data), ("CELL_DATA", data.cell_count, data.cell_data)):
        if columns:
            out += [f"\n{scope} {count}\n".encode(), *_render_columns(columns)]
    return b"".join(out)


def _render_columns(columns: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """Columns of data: SCALARS, VECTORS, and a field of all others."""
    fields = []
    for name, values in columns.items():
        parts, kind, word = values[:1].size, WRITTEN[values.dtype.str[1:]], quote(name, safe=SAFE) or "data"
        if parts == 1:
            yield f"SCALARS {word} {kind}\nLOOKUP_TABLE default\n".encode() + _bytes(values) + b"\n"
        elif parts == 3 and values.dtype.kind == "f":
            yield f"VECTORS {word} {kind}\n".encode() + _bytes(values) + b"\n"
        else:
            fields.append(f"{word} {parts} {len(values)} {kind}\n".encode() + _bytes(values) + b"\n")
    if fields:
        yield f"FIELD FieldData {len(fields)}\n".encode() + b"".join(fields)


def _bytes(values: np.ndarray) -> bytes:
    return values.astype(values.dtype.newbyteorder(">")).tobytes()
