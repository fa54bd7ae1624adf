"""Wavefront OBJ: vertices, faces, lines and points; groups, materials and texture coordinates are kept from .obj to .obj."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from rdmm.io.meshes.mesh import Cells, Kind, PolyData, make_polydata
from rdmm.types import InputError

KINDS: dict[str, Kind] = {"p": "VERTICES", "l": "LINES", "f": "POLYGONS"}


def parse_obj(data: bytes) -> PolyData:
    """The contents of an OBJ file, with its lines for ``render_obj``. Normals are left out: they do not move as points do.

    Raises:
        InputError: a line cannot be read, or there are curves.
    """
    lines = re.sub(r"\\\r?\n", " ", data.decode("latin-1")).splitlines()
    vertices: list[list[float]] = []
    corners: dict[Kind, list[list[int]]] = {kind: [] for kind in KINDS.values()}
    for number, line in enumerate(lines, 1):
        words = line.split()
        try:
            match words:
                case ["v", *values] if len(values) in (3, 4, 6):
                    vertices.append([float(x) for x in values])
                case [("p" | "l" | "f") as name, _, *_]:
                    corners[KINDS[name]].append([_index(word, len(vertices)) for word in words[1:]])
                case [("v" | "p" | "l" | "f" | "curv" | "surf"), *_]:
                    raise ValueError("vertices of three numbers, points, lines and faces are read")
        except ValueError as error:
            raise InputError(f"line {number}: {line.strip()[:60]!r} cannot be read ({error})") from error
    if len({len(v) for v in vertices}) > 1:
        raise InputError("some of its vertices have colors, and some have none")
    table = np.array(vertices) if vertices else np.empty((0, 3))
    cells = [Cells(kind, np.cumsum([0, *map(len, rows)]), np.concatenate(rows)) for kind, rows in corners.items() if rows]
    spaces = [found for line in lines if line.startswith("#") for found in re.findall(r"SPACE=(\w+)", line)]
    return make_polydata(
        table[:, :3],
        cells,
        spaces=spaces,
        point_data={"color": table[:, -3:]} if table.shape[1] == 6 else {},
        left_out=["normals"] if any(line.startswith("vn ") for line in lines) else [],
        native=lines,
    )


def _index(word: str, count: int) -> int:
    """The number of a vertex from 0; in the file from 1, or backwards from the last one so far."""
    number = int(word.split("/", 1)[0])
    if not 0 < abs(number) < 2**53:
        raise ValueError("vertices are numbered from 1")
    return number - 1 if number > 0 else count + number


def render_obj(data: PolyData, frame: str) -> tuple[bytes, list[str]]:
    """A text with a comment that declares the frame, and the names of what it cannot hold. Of an .obj file all lines but its vertices and
    normals stay."""
    colors = data.point_data.get("color")
    if colors is None and (found := next((data.point_data[k] for k in ("RGB", "RGBA") if k in data.point_data), None)) is not None:
        colors = found[:, :3] / 255
    table = data.points if colors is None else np.concatenate([data.points, colors], 1)
    vertices = ["v " + " ".join(f"{x:.9g}" for x in row) for row in table]
    lines = _same_lines(data.native, iter(vertices)) if isinstance(data.native, list) else [*vertices, *_cell_lines(data)]
    lost = [name for name in data.point_data if name not in ("color", "RGB", "RGBA")] + list(data.cell_data)
    return "\n".join([f"# rdmm SPACE={frame}", *lines, ""]).encode("latin-1"), lost


def _same_lines(lines: Sequence[str], vertices: Iterator[str]) -> Iterator[str]:
    """The lines of a file with other vertices, without normals and without the declaration of a frame."""
    for line in lines:
        words = line.split()
        if words[:1] == ["v"]:
            yield next(vertices)
        elif words[:1] == ["f"]:
            yield " ".join("/".join(word.split("/")[:2]).removesuffix("/") for word in words)
        elif words[:1] != ["vn"] and not (line.startswith("#") and "SPACE=" in line):
            yield line


def _cell_lines(data: PolyData) -> Iterator[str]:
    for name, kind in KINDS.items():
        for row in data.part(kind)[0]:
            yield f"{name} " + " ".join(str(k + 1) for k in row)
