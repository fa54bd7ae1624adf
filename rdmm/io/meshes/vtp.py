"""VTK's XML polydata (.vtp): text, base64 or appended bytes, also compressed by zlib."""

from __future__ import annotations

import base64
import itertools
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rdmm.io.meshes.body import to_indices, typed
from rdmm.io.meshes.mesh import Cells, Kind, PolyData, make_polydata
from rdmm.runtime.resources import require_memory
from rdmm.types import InputError

TYPES = {f"{sign}Int{8 * n}": f"{letter}{n}" for sign, letter in (("", "i"), ("U", "u")) for n in (1, 2, 4, 8)}
TYPES |= {"Float32": "f4", "Float64": "f8"}
WRITTEN = {code: name for name, code in TYPES.items()}

SECTIONS: dict[str, Kind] = {"Verts": "VERTICES", "Lines": "LINES", "Polys": "POLYGONS", "Strips": "TRIANGLE_STRIPS"}

COMPRESSORS = ("", "vtkZLibDataCompressor")


def parse_vtp(data: bytes) -> PolyData:
    """The contents of a .vtp file of one piece. Texts and normals are left out.

    Raises:
        InputError: not such a file, damaged, of several pieces, or compressed in another way than by zlib.
    """
    start = re.search(rb"<AppendedData[^>]*>\s*_", data)
    head = data if start is None else data[: start.start()] + b"</VTKFile>"
    if re.search(rb"<!(DOCTYPE|ENTITY)", head):
        raise InputError("it declares entities, which no .vtp file needs")
    try:
        root = ET.fromstring(head)
    except (ET.ParseError, ValueError) as error:
        raise InputError(f"not XML ({error})") from error
    if root.tag != "VTKFile" or root.get("type") != "PolyData":
        raise InputError(f"only VTKFile of the type PolyData is read, not {root.tag} {root.get('type')}; save the surface as polydata")
    pieces = root.findall("PolyData/Piece")
    if len(pieces) != 1:
        raise InputError(f"{len(pieces)} pieces in it; save it as one")
    if root.get("compressor", "") not in COMPRESSORS:
        raise InputError(f"compressed by {root.get('compressor')}; save it with zlib, or uncompressed")
    encoded = start is not None and b'"base64"' in start.group()
    reader = _Reader(
        "<" if root.get("byte_order", "LittleEndian") == "LittleEndian" else ">",
        root.get("header_type", "UInt32"),
        bool(root.get("compressor")),
        b"" if start is None else data[start.end() :],
        encoded,
    )
    return reader.piece(pieces[0], root.find("PolyData/FieldData"))


@dataclass
class _Reader:
    """Reads the arrays of a file.

    Args:
        order: byte order.
        header: type of the counts before the bytes of an array.
        compressed: arrays are blocks compressed by zlib.
        appended: the bytes after the underscore of AppendedData.
        encoded: they are base64.
    """

    order: str
    header: str
    compressed: bool
    appended: bytes
    encoded: bool

    def piece(self, piece: ET.Element, fields: ET.Element | None) -> PolyData:
        arrays = piece.findall("Points/DataArray")
        if len(arrays) != 1:
            raise InputError("its piece must have one array of points")
        points = self.array(arrays[0], self.count(piece, "NumberOfPoints")).reshape(-1, 3).astype(np.float64)
        cells = [self.cells(kind, section) for name, kind in SECTIONS.items() if (section := piece.find(name)) is not None]
        left_out: list[str] = []
        counts = (len(points), sum(c.count for c in cells))
        of_points, of_cells = (
            self.columns(piece.find(name), count, left_out) for name, count in zip(("PointData", "CellData"), counts, strict=True)
        )
        return make_polydata(points, cells, spaces=self.spaces(fields), point_data=of_points, cell_data=of_cells, left_out=left_out)

    def count(self, element: ET.Element, name: str) -> int:
        text = element.get(name, "")
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            raise InputError(f"{name} must be a count, not {text[:20]!r}")
        return int(text)

    def cells(self, kind: Kind, section: ET.Element) -> Cells:
        found = {e.get("Name", ""): e for e in section.findall("DataArray")}
        ends, corners = (
            to_indices(self.array(found[k], None)) if k in found else np.empty(0, np.int64) for k in ("offsets", "connectivity")
        )
        offsets = np.concatenate([[0], ends])
        if offsets[-1] != len(corners) or (np.diff(offsets) < 0).any():
            raise InputError(f"{kind}: offsets must rise to the {len(corners)} numbers of connectivity")
        return Cells(kind, offsets, corners)

    def columns(self, section: ET.Element | None, count: int, left_out: list[str]) -> dict[str, np.ndarray]:
        """The arrays of data by name; ``left_out`` gets the names of texts and normals."""
        out: dict[str, np.ndarray] = {}
        if section is None:
            return out
        for element in section:
            name = element.get("Name", "data")
            if name.lower() == "normals" or name == section.get("Normals"):
                left_out.append("normals")
            elif element.get("type") not in TYPES:
                left_out.append(name)
            else:
                out[name] = self.array(element, count)
        return out

    def spaces(self, fields: ET.Element | None) -> list[str]:
        """The spaces that the texts SPACE of the field data declare."""
        texts = [e for e in (() if fields is None else fields) if e.get("Name") == "SPACE"]
        return [bytes(self.numbers(e, np.dtype("u1"), None).astype(np.uint8)).rstrip(b"\0").decode("latin-1") for e in texts]

    def array(self, element: ET.Element, rows: int | None) -> np.ndarray:
        """An array (rows,) or (rows, k); any number of rows where None is expected."""
        kind = element.get("type", "")
        if kind not in TYPES:
            raise InputError(f"numbers of type {kind[:20]!r} cannot be read; there are {', '.join(TYPES)}")
        parts = self.count(element, "NumberOfComponents") if element.get("NumberOfComponents") else 1
        size = None if rows is None else rows * parts
        values = self.numbers(element, np.dtype(self.order + TYPES[kind]), size)
        if size is not None and len(values) != size:
            raise InputError(f"the array {element.get('Name')!r} has {len(values)} numbers, not {size}")
        return values.astype(values.dtype.newbyteorder("=")).reshape((-1, parts) if parts > 1 else -1)

    def numbers(self, element: ET.Element, dtype: np.dtype, size: int | None) -> np.ndarray:
        form, text = element.get("format", "ascii"), element.text or ""
        try:
            if form == "ascii":
                return typed(np.array(text.split(), np.float64), dtype)
            if form == "appended":
                part = _Part(memoryview(self.appended)[self.count(element, "offset") :], self.encoded)
            else:
                part = _Part(memoryview("".join(text.split()).encode()), True)
            limit = None if size is None else size * dtype.itemsize
            return np.frombuffer(self.decompressed(part, limit) if self.compressed else self.plain(part), dtype)
        except (ValueError, zlib.error) as error:
            raise InputError(f"the array {element.get('Name')!r} is damaged ({error})") from error

    def plain(self, part: _Part) -> bytes:
        """The bytes of an array after their number."""
        size = self.words(part.take(0, self.word.itemsize))[0]
        return part.take(0, self.word.itemsize + size)[self.word.itemsize :]

    def decompressed(self, part: _Part, limit: int | None) -> bytes:
        """The bytes of an array in blocks, after their number, the size of a block and of the last, and the compressed size of each."""
        count = self.words(part.take(0, self.word.itemsize))[0]
        _, size, _, *sizes = self.words(part.take(0, (3 + count) * self.word.itemsize))
        ends = list(itertools.accumulate(sizes, initial=0))
        body = part.take(part.length((3 + count) * self.word.itemsize), ends[-1])
        most = size if limit is None else min(size, limit)
        require_memory(count * most, f"an array of {count * most} bytes", "save the file uncompressed")
        return b"".join(zlib.decompressobj().decompress(body[a:b], max(most, 1)) for a, b in itertools.pairwise(ends))

    @property
    def word(self) -> np.dtype:
        """The type of the counts before an array."""
        return np.dtype(self.order + TYPES.get(self.header, "u4"))

    def words(self, data: bytes) -> list[int]:
        return [int(x) for x in np.frombuffer(data, self.word)]


@dataclass
class _Part:
    """The bytes of an array, or their base64."""

    raw: memoryview
    encoded: bool

    def length(self, count: int) -> int:
        """How long ``count`` bytes are in the file, where base64 encodes them on their own."""
        return 4 * -(-count // 3) if self.encoded else count

    def take(self, at: int, count: int) -> bytes:
        """``count`` bytes of the stream that begins at ``at``. Raises InputError where there are fewer."""
        part = self.raw[at : at + self.length(count)]
        data = base64.b64decode(part) if self.encoded else bytes(part)
        if len(data) < count:
            raise InputError(f"cut short: {count} bytes expected, {len(data)} found")
        return data[:count]


def render_vtp(data: PolyData, frame: str) -> bytes:
    """A file with base64 arrays that declares the frame of its points, in which they are already."""
    sections = []
    for name, kind in SECTIONS.items():
        lists = [c for c in data.cells if c.kind == kind]
        arrays = {"connectivity": lists[0].corners, "offsets": lists[0].offsets[1:]} if lists else {}
        sections.append((name, "", arrays, lists[0].count if lists else 0))
    counts = " ".join(f'NumberOf{name}="{count}"' for name, _, _, count in sections)
    space = " ".join(map(str, [*frame.encode(), 0]))
    parts: list[tuple[str, Mapping[str, np.ndarray]]] = [("PointData", data.point_data), ("CellData", data.cell_data)]
    parts += [("Points", {"Points": data.points}), *((name, arrays) for name, _, arrays, _ in sections)]
    body = "".join(f"<{name}>\n{''.join(_render(k, x) for k, x in arrays.items())}</{name}>\n" for name, arrays in parts)
    return (
        '<?xml version="1.0"?>\n<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n<PolyData>\n'
        f'<FieldData><Array type="String" Name="SPACE" NumberOfTuples="1" format="ascii">{space}</Array></FieldData>\n'
        f'<Piece NumberOfPoints="{len(data.points)}" {counts}>\n{body}</Piece>\n</PolyData>\n</VTKFile>\n'
    ).encode()


def _render(name: str, values: np.ndarray) -> str:
    """One DataArray."""
    values = values.astype(values.dtype.newbyteorder("<"))
    raw = base64.b64encode(values.nbytes.to_bytes(8, "little") + values.tobytes()).decode()
    element = ET.Element("DataArray", type=WRITTEN[values.dtype.str[1:]], Name=name, format="binary")
    element.set("NumberOfComponents", str(values.shape[1] if values.ndim > 1 else 1))
    element.text = raw
    return ET.tostring(element, encoding="unicode") + "\n"
