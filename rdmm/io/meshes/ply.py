"""PLY: text, or binary of either byte order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rdmm.io.meshes.body import Body, to_indices
from rdmm.io.meshes.mesh import Cells, Mesh, in_ras, make_mesh
from rdmm.types import InputError

TYPES = {"float": "f4", "float32": "f4", "double": "f8", "float64": "f8", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4"}
TYPES |= {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2"}

ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
"""Byte orders; empty for text."""

LIST_NAMES = ("vertex_indices", "vertex_index")
"""What files call the list of a face's vertices."""


@dataclass(frozen=True)
class _Property:
    """A column of an element; with ``length``, the type of its number of entries, it is a list."""

    name: str
    kind: str
    length: str | None = None


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)


def parse_ply(data: bytes) -> Mesh:
    """The contents of a PLY file.

    Raises:
        InputError: not such a file, of another version, damaged, or with cells that cannot be read.
    """
    end = re.search(rb"^end_header[ \t]*\r?\n", data, re.MULTILINE)
    if not re.match(rb"ply[ \t]*\r?\n", data) or not end:
        raise InputError(f"not a PLY file (it begins with {data[:12]!r}), or its header is cut short")
    order, elements, spaces = _read_header(data[: end.start()].decode("latin-1"))
    rows = _Rows(Body(data, end.end()), order)
    found = {element.name: rows.columns(element) for element in elements}
    if rows.body.data[rows.body.at :].strip():
        raise InputError(f"{rows.body.left} bytes more than its header says, after byte {rows.body.at}")
    vertices = found.get("vertex", {})
    if missing := [c for c in "xyz" if not isinstance(vertices.get(c), np.ndarray)]:
        raise InputError(f"its vertices have no property {missing[0]!r}; x, y and z are needed")
    if "tristrips" in found:
        raise InputError("triangle strips of PLY files are not read; write triangles as faces")
    points = np.stack([np.asarray(vertices[c], np.float64) for c in "xyz"], 1)
    weights = vertices.get("weights")
    cells = [*_faces(found.get("face", {})), *_edges(found.get("edge", {}))]
    return make_mesh(in_ras(points, spaces), cells, None if weights is None else np.asarray(weights, np.float64))


def _faces(columns: dict[str, np.ndarray | list[np.ndarray]]) -> list[Cells]:
    if not columns:
        return []
    name = next((n for n in LIST_NAMES if isinstance(columns.get(n), list)), None)
    if name is None:
        raise InputError(f"its faces have no list {LIST_NAMES[0]}, but {', '.join(columns)}")
    rows = columns[name]
    if not len(rows):
        return []
    offsets = np.cumsum([0, *map(len, rows)])
    return [Cells("POLYGONS", offsets, np.concatenate([to_indices(row) for row in rows]))]


def _edges(columns: dict[str, np.ndarray | list[np.ndarray]]) -> list[Cells]:
    if not columns:
        return []
    if missing := [n for n in ("vertex1", "vertex2") if not isinstance(columns.get(n), np.ndarray)]:
        raise InputError(f"its edges have no property {missing[0]!r}")
    ends = np.stack([to_indices(np.asarray(columns[n])) for n in ("vertex1", "vertex2")], 1)
    return [Cells("LINES", 2 * np.arange(len(ends) + 1), ends.ravel())]


@dataclass
class _Rows:
    """Reads one element after the other; ``order`` is the byte order, or empty for text."""

    body: Body
    order: str

    def columns(self, element: _Element) -> dict[str, np.ndarray | list[np.ndarray]]:
        """The columns of an element by name: arrays (count,), or of lists one array for each row."""
        properties = element.properties
        sizes = [self._dtype(p.length or p.kind).itemsize if self.order else 2 for p in properties]
        self.body.require(
            element.count, sum(sizes), f"rows of {element.name}" if self.order else f"rows of {element.name} and the last's end"
        )
        if any(p.length for p in properties):
            return self._with_lists(element)
        names = [p.name for p in properties]
        if not self.order:
            return dict(zip(names, self.body.text(element.count * len(names)).reshape(element.count, len(names)).T, strict=True))
        rows = self.body.binary(element.count, np.dtype([(p.name, self._dtype(p.kind)) for p in properties]))
        return {n: rows[n] for n in names}

    def _with_lists(self, element: _Element) -> dict[str, np.ndarray | list[np.ndarray]]:
        read: dict[str, list[np.ndarray]] = {p.name: [] for p in element.properties}
        for _ in range(element.count):
            for p in element.properties:
                count = 1 if p.length is None else int(to_indices(self._numbers(1, p.length))[0])
                read[p.name].append(self._numbers(count, p.kind))
        return {p.name: read[p.name] if p.length else np.concatenate([np.empty(0), *read[p.name]]) for p in element.properties}

    def _dtype(self, kind: str) -> np.dtype:
        return np.dtype(self.order + TYPES[kind])

    def _numbers(self, count: int, kind: str) -> np.ndarray:
        return self.body.binary(count, self._dtype(kind)) if self.order else self.body.text(count)


def _read_header(text: str) -> tuple[str, list[_Element], list[str]]:
    """The byte order, the elements, and the spaces that comments declare (SPACE=LPS, as Slicer writes)."""
    order: str | None = None
    elements: list[_Element] = []
    spaces: list[str] = []
    for line in text.splitlines()[1:]:
        match line.split():
            case ["comment" | "obj_info", *_]:
                spaces += re.findall(r"SPACE=(\w+)", line)
            case ["format", form, "1.0"] if form in ORDERS and order is None:
                order = ORDERS[form]
            case ["element", name, count] if re.fullmatch(r"\d{1,18}", count, re.ASCII) and name not in [e.name for e in elements]:
                elements.append(_Element(name, int(count)))
            case ["property", *words] if elements:
                elements[-1].properties.append(_property(words, line, elements[-1]))
            case []:
                pass
            case _:
                raise InputError(
                    f"the line {line.strip()[:60]!r} of the PLY header cannot be read; formats: {', '.join(ORDERS)}, version 1.0"
                )
    if order is None or not all(e.properties for e in elements):
        raise InputError("the PLY header lacks its line 'format'" if order is None else "an element of the PLY header has no property")
    return order, elements, spaces


def _property(words: Sequence[str], line: str, element: _Element) -> _Property:
    match words:
        case ["list", length, kind, name]:
            out = _Property(name, kind, length)
        case [kind, name]:
            out = _Property(name, kind)
        case _:
            raise InputError(f"the line {line.strip()[:60]!r} of the PLY header cannot be read")
    if unknown := [k for k in (out.kind, out.length) if k is not None and k not in TYPES]:
        raise InputError(f"the type {unknown[0][:20]!r} of {element.name}.{out.name} is not one of {', '.join(TYPES)}")
    if out.name in [p.name for p in element.properties]:
        raise InputError(f"{element.name} has two properties {out.name!r}")
    return out
