"""PLY: text, or binary of either byte order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rdmm.io.meshes.body import Body, to_indices, typed
from rdmm.io.meshes.mesh import Cells, PolyData, make_polydata
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


OWN = ("x", "y", "z", "vertex1", "vertex2", *LIST_NAMES)
"""Properties that are the shape itself."""

WRITTEN = {TYPES[name]: name for name in ("float", "double", "int", "uint", "char", "uchar", "short", "ushort")}

COLORS = ("red", "green", "blue", "alpha")
"""Properties that become one column RGB or RGBA, as VTK names it."""


def parse_ply(data: bytes) -> PolyData:
    """The contents of a PLY file; normals are left out, since they do not move as points do.

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
    left_out = [e.name for e in elements if e.name not in ("vertex", "face", "edge") and e.count]
    tables: dict[str, dict[str, np.ndarray]] = {}
    for element in elements:
        tables[element.name], others = _columns(element, found[element.name])
        left_out += others
    lists = [*_edges(found.get("edge", {})), *_faces(found.get("face", {}))]
    of_cells = [tables[e.name] for e in elements if e.name in ("edge", "face") and e.count]
    if len(of_cells) > 1:  # the data of cells are one table
        left_out += [name for columns in of_cells for name in columns]
    cell_data = of_cells[0] if len(of_cells) == 1 else {}
    return make_polydata(points, lists, spaces=spaces, point_data=tables["vertex"], cell_data=cell_data, left_out=left_out)


def _columns(element: _Element, found: Mapping[str, np.ndarray | list[np.ndarray]]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The properties of an element that are data, by name, and the names of those that are left out: lists and normals."""
    kept = [p for p in element.properties if p.name not in (*OWN, "nx", "ny", "nz") and p.length is None]
    columns = {p.name: typed(np.asarray(found[p.name]), np.dtype(TYPES[p.kind])) for p in kept}
    colors = [name for name in COLORS if name in columns and columns[name].dtype == np.uint8]
    if len(colors) >= 3:
        columns["RGBA"[: len(colors)]] = np.stack([columns.pop(name) for name in colors], 1)
    left_out = [p.name for p in element.properties if p not in kept and p.name not in (*OWN, "ny", "nz")]
    return columns, ["normals" if name == "nx" else name for name in left_out]


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


def render_ply(data: PolyData, frame: str) -> tuple[bytes, list[str]]:
    """A binary file with a comment that declares the frame, and the names of what it cannot hold.

    Args:
        data: its points are in ``frame`` already, in the type that is written.
    """
    lines, of_lines = data.part("LINES")
    faces, of_faces = data.part("POLYGONS")
    lost = [] if all(len(row) == 2 for row in lines) else list(of_lines)  # a polyline becomes several edges
    vertices = dict(zip("xyz", data.points.T, strict=True)) | _properties(data.point_data)
    head, body = _table("vertex", vertices)
    if lines:
        ends = np.concatenate([np.stack([row[:-1], row[1:]]) for row in lines], 1)
        more = _table("edge", dict(zip(("vertex1", "vertex2"), ends, strict=True)) | ({} if lost else _properties(of_lines)))
        head, body = head + more[0], body + more[1]
    if faces:
        properties, tails = _table("face", _properties(of_faces))
        kind, size = ("uchar", 1) if max(map(len, faces)) < 256 else ("int", 4)
        head += [f"element face {len(faces)}", f"property list {kind} int {LIST_NAMES[0]}", *properties[1:]]
        step = len(tails) // len(faces)
        rows = (len(row).to_bytes(size, "little") + row.astype("<i4").tobytes() for row in faces)
        body += b"".join(row + tails[k * step : (k + 1) * step] for k, row in enumerate(rows))
    start = ["ply", "format binary_little_endian 1.0", f"comment rdmm SPACE={frame}"]
    return "\n".join([*start, *head, "end_header\n"]).encode() + body, lost


def _properties(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of data as properties of one number each, in a type that PLY has."""
    out: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        word = re.sub(r"[^!-~]", "_", name)
        if name in ("RGB", "RGBA") and values.dtype == np.uint8 and values.shape[1:] == (len(name),):
            names: Sequence[str] = COLORS[: len(name)]
        else:
            names = [word] if values.ndim == 1 else [f"{word}_{k + 1}" for k in range(values.shape[1])]
        out |= dict(zip(names, values.reshape(len(values), -1).T, strict=True))
    return out


def _table(name: str, columns: Mapping[str, np.ndarray]) -> tuple[list[str], bytes]:
    """The lines of the header about an element without lists, and its rows."""
    typed_columns = {word: _in_a_type_of_ply(x) for word, x in columns.items()}
    table = np.empty(len(next(iter(columns.values()), ())), [(word, "<" + x.dtype.str[1:]) for word, x in typed_columns.items()])
    for word, x in typed_columns.items():
        table[word] = x
    return [
        f"element {name} {len(table)}",
        *(f"property {WRITTEN[x.dtype.str[1:]]} {w}" for w, x in typed_columns.items()),
    ], table.tobytes()


def _in_a_type_of_ply(values: np.ndarray) -> np.ndarray:
    """Whole numbers of 64 bits in 32 bits where these suffice, else as float64."""
    if values.dtype.itemsize < 8 or values.dtype.kind == "f":
        return values
    fits = not len(values) or (values.min() >= -(2**31) and values.max() < 2**31)
    return values.astype(np.int32 if fits else np.float64)
