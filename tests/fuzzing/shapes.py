"""Meshes: legacy VTK of all versions, and PLY, as text and binary; damaged files of the other formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fuzzing.case import WORDS, Case, Rng, chance, count, number, perhaps_damaged, pick, text_of
from rdmm import io
from rdmm.io.meshes.files import WRITERS
from rdmm.io.meshes.mesh import Kind, PolyData, as_rows
from rdmm.types import OutputError

POINTS = 7


def require_laws(folder: Path, name: str) -> None:
    """A mesh has finite points, and cells of these points; it is the same after it was written and read again."""
    mesh = io.read_mesh(folder / name)
    assert mesh.points.ndim == 2 and mesh.points.shape[1] == 3 and len(mesh.points), "no points"
    assert np.isfinite(mesh.points).all(), "points that are not finite"
    if mesh.cells is not None:
        assert mesh.cells.shape[1] in (2, 3) and (mesh.cells >= 0).all() and (mesh.cells < len(mesh.points)).all(), "cells of no points"
    if mesh.weights is not None:
        assert mesh.weights.shape == (len(mesh.points),) and np.isfinite(mesh.weights).all() and (mesh.weights >= 0).all(), "weights"
    try:
        io.write_mesh(folder / "again.vtk", mesh.points, mesh.cells, {} if mesh.weights is None else {"weights": mesh.weights})
    except OutputError as error:
        if "not finite" in str(error):
            return
        raise
    again = io.read_mesh(folder / "again.vtk")
    assert np.array_equal(again.points, mesh.points.astype(np.float32)), "other points after writing and reading"
    assert (again.cells is None) == (mesh.cells is None or not len(mesh.cells)), "cells are lost"
    assert mesh.cells is None or not len(mesh.cells) or np.array_equal(again.cells, mesh.cells), "other cells after writing and reading"


def block(rng: Rng, values: np.ndarray, kind: str, binary: bool) -> bytes:
    """Numbers of a VTK file, text or big-endian."""
    if not binary:
        return " ".join(text_of(rng, float(x), 0.005) for x in values).encode("utf-8", "backslashreplace") + b"\n"
    types = {"float": ">f4", "double": ">f8", "int": ">i4", "vtktypeint64": ">i8", "vtkIdType": ">i4", "unsigned_char": ">u1"}
    with np.errstate(all="ignore"):
        return values.astype(types.get(kind, ">i4")).tobytes() + b"\n"


def points_of(rng: Rng) -> np.ndarray:
    return np.array([number(rng, 0.01) for _ in range(3 * POINTS)])


def cells_of(rng: Rng) -> list[list[int]]:
    """A few cells; now and then with a vertex that does not exist, or without corners."""
    size, hostile = pick(rng, (1, 2, 3, 3, 4, 5)), (-1, POINTS, 2**31 - 1)
    cells = [[int(rng.integers(POINTS)) for _ in range(size)] for _ in range(int(rng.integers(0, 5)))]
    for cell in cells:
        if chance(rng, 0.03):
            cell[0] = pick(rng, hostile)
        if chance(rng, 0.02):
            cell.clear()
    return cells


def vtk_cells(rng: Rng, binary: bool, by_offsets: bool) -> bytes:
    kind, cells = pick(rng, ("VERTICES", "LINES", "POLYGONS", "TRIANGLE_STRIPS")), cells_of(rng)
    flat = [k for cell in cells for k in cell]
    if not by_offsets:
        sized = np.array([k for cell in cells for k in (count(rng, len(cell), 0.02), *cell)], dtype=np.float64)
        return f"{kind} {count(rng, len(cells))} {count(rng, len(sized))}\n".encode() + block(rng, sized, "int", binary)
    offsets = np.cumsum([0, *map(len, cells)]).astype(np.float64)
    if chance(rng, 0.1):
        offsets[int(rng.integers(len(offsets)))] = pick(rng, (-1, 3, 2**40))
    head = f"{kind} {count(rng, len(offsets))} {count(rng, len(flat))}\n"
    first = f"OFFSETS {pick(rng, ('vtktypeint64',) * 12 + ('int', 'float', 'bit', 'x'))}\n"
    second = b"CONNECTIVITY vtktypeint64\n" + block(rng, np.array(flat, dtype=np.float64), "vtktypeint64", binary)
    return head.encode() + first.encode() + block(rng, offsets, "vtktypeint64", binary) + second


def vtk_data(rng: Rng, binary: bool) -> bytes:
    """Point data: weights as scalars or a field, or other attributes."""
    weights = np.array([abs(number(rng, 0.03)) if chance(rng, 0.97) else -1 for _ in range(POINTS)])
    out = f"POINT_DATA {count(rng, POINTS, 0.05)}\n".encode()
    match int(rng.integers(0, 4)):
        case 0:
            return out + b"SCALARS weights float 1\nLOOKUP_TABLE default\n" + block(rng, weights, "float", binary)
        case 1:
            head = (
                f"FIELD f {count(rng, 1)}\nweights {count(rng, 1)} {count(rng, POINTS)} {pick(rng, ('float',) * 8 + ('string', 'bit'))}\n"
            )
            return out + head.encode() + block(rng, weights, "float", binary)
        case 2:
            return out + b"METADATA\nINFORMATION 0\n\nNORMALS n float\n" + block(rng, points_of(rng), "float", binary)
        case _:
            return out + f"{pick(rng, ('VECTORS', 'TENSORS', 'COLOR_SCALARS', 'XYZ', 'SCALARS'))} n float\n".encode() + rng.bytes(20)


def draw_vtk(rng: Rng) -> Case:
    binary, version = chance(rng, 0.5), pick(rng, ("3.0", "4.2", "2.0", "5.1", "5.1") * 4 + ("9.9", "0.1", "99999.1"))
    kind = pick(rng, ("float", "double", "int") * 6 + ("x",))
    title = pick(rng, ("title", "SPACE=LPS", "\xff") * 5 + ("SPACE=XYZ", "x" * 400))
    head = f"# vtk DataFile Version {version}\n{title}\n{'BINARY' if binary else 'ASCII'}\nDATASET POLYDATA\n"
    parts = [f"POINTS {count(rng, POINTS, 0.05)} {kind}\n".encode() + block(rng, points_of(rng), kind, binary)]
    parts += [vtk_cells(rng, binary, version >= "5") for _ in range(pick(rng, (0, 1, 1, 1, 2)))]
    parts += [vtk_data(rng, binary)] if chance(rng, 0.4) else []
    if chance(rng, 0.1):
        parts.insert(int(rng.integers(len(parts) + 1)), str(pick(rng, WORDS)).encode("utf-8", "backslashreplace") + b"\n")
    data = perhaps_damaged(rng, head.encode("latin-1") + b"".join(parts), 0.2)
    return Case(lambda folder: require_laws(folder, "s.vtk"), {"s.vtk": data}, head[:60])


def draw_ply(rng: Rng) -> Case:
    order = pick(rng, ("ascii", "binary_little_endian", "binary_big_endian"))
    end = ">" if "big" in order else "<"
    kind, index, length = (
        pick(rng, ("float", "double", "int")),
        pick(rng, ("int", "uchar", "uint") * 3 + ("float",)),
        pick(rng, ("uchar", "int", "char")),
    )
    code = {"float": "f4", "double": "f8", "int": "i4", "uchar": "u1", "uint": "u4", "char": "i1"}
    points, cells = points_of(rng), cells_of(rng)
    head = [f"format {order} {pick(rng, ('1.0',) * 9 + ('2.0',))}", f"element vertex {count(rng, POINTS, 0.05)}"]
    head += [f"property {kind} {axis}" for axis in "xyz" if chance(rng, 0.98)]
    head += [f"element face {count(rng, len(cells), 0.05)}", f"property list {length} {index} vertex_indices"]
    if chance(rng, 0.1):
        head.insert(int(rng.integers(len(head) + 1)), str(pick(rng, WORDS)).replace("\n", " "))
    sizes = [count(rng, len(cell), 0.02) for cell in cells]
    if order == "ascii":
        rows = [" ".join(text_of(rng, x, 0.005) for x in row) for row in points.reshape(-1, 3)]
        rows += [" ".join(map(str, (n, *cell))) for n, cell in zip(sizes, cells, strict=True)]
        body = "\n".join([*rows, ""]).encode("utf-8", "backslashreplace")
    else:
        with np.errstate(all="ignore"):
            body = points.astype(end + code[kind]).tobytes()
            for n, cell in zip(sizes, cells, strict=True):
                body += np.array(float(n)).astype(end + code[length]).tobytes() + np.array(cell, float).astype(end + code[index]).tobytes()
    data = "\n".join(["ply", *head, "end_header", ""]).encode("utf-8", "backslashreplace") + body
    return Case(lambda folder: require_laws(folder, "s.ply"), {"s.ply": perhaps_damaged(rng, data, 0.2)}, order)


def draw_other(rng: Rng) -> Case:
    """A file of another format, as it is written, mostly damaged."""
    ending = pick(rng, (".vtp", ".stl", ".obj", ".gii", ".tck"))
    kind: Kind = "LINES" if ending == ".tck" else "POLYGONS"
    points = (10 * rng.normal(size=(POINTS, 3))).round(3)
    data = PolyData(points, [as_rows(kind, rng.integers(POINTS, size=(4, 3)))], {"a": np.arange(POINTS)})
    content, _ = WRITERS[ending](data, pick(rng, ("RAS", "LPS")))
    return Case(lambda folder: require_laws(folder, f"s{ending}"), {f"s{ending}": perhaps_damaged(rng, content, 0.8)}, ending)


GENERATORS = {"mesh_vtk": draw_vtk, "mesh_ply": draw_ply, "mesh_other": draw_other}
