"""Mesh files of other programs and versions, and damaged ones: the same shape, or an InputError at once."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from rdmm import io
from rdmm.io.meshes.mesh import Cells
from rdmm.types import ConfigError, InputError, OutputError, ResourceError

POINTS = np.array([[0, 0, 1], [1, 0, 2], [1, 1, 3], [0, 1, 4], [0.5, 2, 5]])

CELLS = {
    "VERTICES": ([[0], [1, 2], [3]], None),
    "LINES": ([[0, 1, 2], [3, 4]], [[0, 1], [1, 2], [3, 4]]),
    "POLYGONS": ([[0, 1, 2], [0, 2, 3, 4]], [[0, 1, 2], [0, 2, 3], [0, 3, 4]]),
    "TRIANGLE_STRIPS": ([[0, 1, 2, 3, 4]], [[0, 1, 2], [1, 3, 2], [2, 3, 4]]),
}


def metadata_of(parts):
    """What VTK writes of an array of so many components, of which the last has a name."""
    names = "\n" * (parts - 1) + "LINES%20x\n"
    return f"\nMETADATA\nCOMPONENT_NAMES\n{names}INFORMATION 1\nNAME L2_NORM_RANGE LOCATION vtkDataArray\nDATA 2 10 10 \n\n".encode()


def numbers(values, kind, binary):
    """Numbers as a VTK file holds them."""
    types = {"float": ">f4", "double": ">f8", "int": ">i4", "vtktypeint64": ">i8", "vtkIdType": ">i4", "unsigned_char": ">u1"}
    values = np.asarray(values).ravel()
    return values.astype(types[kind]).tobytes() + b"\n" if binary else (" ".join(f"{v:g}" for v in values) + "\n").encode()


def vtk_file(version, binary, kind, *, metadata=False, space=None, weights=None):
    """A VTK file as VTK, Slicer and others write it."""
    rows, flat = CELLS[kind][0], np.concatenate(CELLS[kind][0])
    data = f"# vtk DataFile Version {version}\n{'3D Slicer output. SPACE=' + space if space else 'x'}\n".encode()
    data += b"BINARY\n" if binary else b"ASCII\n"
    data += b"DATASET POLYDATA\n"
    if space:
        text = bytes([0xC0 | len(space)]) + space.encode() + b"\n" if binary else f"{space}\n".encode()
        data += b"FIELD FieldData 1\nSPACE 1 1 string\n" + text
    data += f"POINTS {len(POINTS)} double\n".encode() + numbers(POINTS, "double", binary) + (metadata_of(3) if metadata else b"")
    if version[0] == "5":
        offsets = np.cumsum([0, *map(len, rows)])
        data += f"{kind} {len(offsets)} {len(flat)}\nOFFSETS vtktypeint64\n".encode() + numbers(offsets, "vtktypeint64", binary)
        data += b"CONNECTIVITY vtktypeint64\n" + numbers(flat, "vtktypeint64", binary)
    else:
        sized = np.concatenate([[len(r), *r] for r in rows])
        data += f"{kind} {len(rows)} {len(sized)}\n".encode() + numbers(sized, "int", binary)
    data += f"CELL_DATA {len(rows)}\nSCALARS c int 1\nLOOKUP_TABLE default\n".encode() + numbers([7] * len(rows), "int", binary)
    if weights is not None:
        data += f"POINT_DATA {len(POINTS)}\nFIELD FieldData 2\nids 2 {len(POINTS)} vtkIdType\n".encode()
        data += (
            numbers(range(10), "vtkIdType", binary) + (metadata_of(2) if metadata else b"") + f"weights 1 {len(POINTS)} float\n".encode()
        )
        data += numbers(weights, "float", binary)
    return data


def ply_file(form, *, types=("float", "uchar", "int"), extra=False, space=None):
    """A PLY file; with ``extra``, colors of vertices and faces and texture coordinates beside the lists."""
    order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[form]
    codes = {"float": "f4", "double": "f8", "uchar": "u1", "ushort": "u2", "int": "i4", "uint32": "u4"}
    number, length, item = types
    comment = f"comment 3D Slicer output. SPACE={space}\n" if space else ""
    color = "property uchar red\n" if extra else ""
    lists = "property list uchar float texcoord\nproperty uchar flags\n" if extra else ""
    head = (
        f"ply\nformat {form} 1.0\n{comment}comment end_header\nelement vertex 5\n"
        + "".join(f"property {number} {a}\n" for a in "xyz")
        + f"{color}element face 2\nproperty list {length} {item} vertex_indices\n{lists}end_header\n"
    )

    def put(values, kind):
        return np.asarray(values).astype(order + codes[kind]).tobytes() if order else (" ".join(map(str, np.ravel(values))) + "\n").encode()

    body = b""
    for p in POINTS:
        body += put(p, number) + (put(9, "uchar") if extra else b"")
    for row in CELLS["POLYGONS"][0]:
        body += put(len(row), length) + put(row, item)
        body += put(2, "uchar") + put([0.5, 0.25], "float") + put(3, "uchar") if extra else b""
    return head.encode() + body


def read(tmp_path, data, ending="vtk"):
    path = tmp_path / f"m.{ending}"
    path.write_bytes(data)
    return io.read_mesh(path)


@pytest.mark.fault(104)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("version", ["1.0", "2.0", "3.0", "4.2", "5.1"])
def test_all_versions_of_vtk_hold_the_same_shape(tmp_path, version, kind):
    weights = [5, 4, 3, 2, 1]
    for binary, metadata, space in itertools.product((False, True), (False, True), (None, "LPS", "RAS")):
        mesh = read(tmp_path, vtk_file(version, binary, kind, metadata=metadata, space=space, weights=weights))
        expected = CELLS[kind][1]
        assert np.allclose(mesh.points, POINTS * ([-1, -1, 1] if space == "LPS" else 1))
        assert (mesh.cells is None) if expected is None else (mesh.cells.tolist() == expected)
        assert (mesh.weights.tolist() == weights) if expected is None else (mesh.weights is None)


def test_weights_that_are_not_used_are_said(tmp_path, caplog):
    read(tmp_path, vtk_file("5.1", True, "POLYGONS", weights=[1] * 5))
    assert "weights of its points are not used" in caplog.text


@pytest.mark.fault(104)
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_all_forms_of_ply_hold_the_same_shape(tmp_path, form):
    for types, extra in itertools.product((("float", "uchar", "int"), ("double", "ushort", "uint32")), (False, True)):
        for space in (None, "LPS"):
            mesh = read(tmp_path, ply_file(form, types=types, extra=extra, space=space), "ply")
            assert np.allclose(mesh.points, POINTS * ([-1, -1, 1] if space else 1))
            assert mesh.cells.tolist() == CELLS["POLYGONS"][1]


SOUND = {
    f"{k}-{v}-{b}.vtk": vtk_file(v, b, k, metadata=True, space="RAS", weights=[1] * 5)
    for k, v, b in itertools.product(CELLS, ("3.0", "5.1"), (False, True))
} | {
    f"{f}-{e}.ply": ply_file(f, extra=e)
    for f, e in itertools.product(("ascii", "binary_little_endian", "binary_big_endian"), (False, True))
}

COUNTS = [b"POINTS 5", b"POINT_DATA 5", b"ids 2 5", b"ids 2", b"weights 1 5", b"SPACE 1 1", b"FieldData 2", b"vertex 5", b"face 2"]
COUNTS += [f"{kind} {n}".encode() for kind in CELLS for n in range(1, 6)]


@pytest.mark.fault(104)
@pytest.mark.parametrize("name", SOUND)
def test_a_wrong_count_is_an_error_at_once(tmp_path, name):
    data, begin = SOUND[name], time.process_time()
    counts = [c for c in COUNTS if c in data and data[data.index(c) + len(c) :][:1] in b" \n"]
    assert len(counts) >= 2
    for count, wrong in itertools.product(counts, ("-4", "-1", "4", "400", "4000000000", "9" * 17, "9" * 5000, "1.5", "nan", "", "x")):
        if count.split()[-1] == wrong.encode():
            continue
        with pytest.raises(InputError, match=r"m\.(vtk|ply): "):
            read(tmp_path, data.replace(count, count.rpartition(b" ")[0] + b" " + wrong.encode(), 1), name[-3:])
    assert time.process_time() - begin < 5


@pytest.mark.fault(104)
@pytest.mark.parametrize("size", [-1, -4, -(2**31), 2**31 - 1, 6])
def test_a_cell_of_a_wrong_size_is_an_error_at_once(tmp_path, size):
    head = b"# vtk DataFile Version 3.0\nx\nBINARY\nDATASET POLYDATA\nPOINTS 1 float\n" + bytes(12)
    for kind in CELLS:
        data = head + f"{kind} 1 4\n".encode() + np.array([size, 0, 0, 0], ">i4").tobytes()
        with pytest.raises(InputError, match=kind):
            read(tmp_path, data)
        with pytest.raises(InputError, match=kind):
            read(tmp_path, head.replace(b"BINARY", b"ASCII").replace(bytes(12), b"0 0 0\n") + f"{kind} 1 4\n{size} 0 0 0".encode())
        offsets = np.array([0, size, 3], ">i8").tobytes() + b"\nCONNECTIVITY vtktypeint64\n" + bytes(24)
        with pytest.raises(InputError, match="OFFSETS"):
            read(tmp_path, head.replace(b"3.0", b"5.1") + f"{kind} 3 3\nOFFSETS vtktypeint64\n".encode() + offsets)
    vertices = "ply\nformat {} 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
    faces = "element face 4000000000\nproperty list int int vertex_indices\nend_header\n"
    for form, body in (
        ("ascii", f"0 0 0\n{size} 0 0 0\n".encode()),
        ("binary_little_endian", bytes(12) + np.array([size, 0], "<i4").tobytes()),
    ):
        for count in ("1", "4000000000"):
            with pytest.raises(InputError, match=r"count|cut short"):
                read(tmp_path, (vertices.format(form) + faces.replace("4000000000", count)).encode() + body, "ply")


@pytest.mark.parametrize("kind", ["LINES", "POLYGONS", "TRIANGLE_STRIPS", "VERTICES"])
def test_vertices_of_cells_are_whole_numbers_of_points(tmp_path, kind):
    head = "# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 3 float\n0 0 0 1 0 0 1 1 0\n"
    for wrong, message in (
        ("3", "vertices 0 to 3"),
        ("-1", "vertices -1 to 1"),
        ("1.5", "whole"),
        ("nan", "whole"),
        ("1e300", "whole"),
        ("x", "x"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path, f"{head}{kind} 1 4\n3 0 1 {wrong}\n".encode())
    if kind != "VERTICES":
        with pytest.raises(InputError, match="corners"):
            read(tmp_path, f"{head}{kind} 1 2\n1 0\n".encode())


@pytest.mark.fault(104)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Version 3.0", "Version 6.0", "version 6.0"),
        ("Version 3.0", "Version 5.2", "version 5.2"),
        ("Version 3.0", "Version x", "not a legacy VTK"),
        ("ASCII", "BASE64", "ASCII or BINARY"),
        ("POLYGONS 2", "HEXAGONS 2", "unknown section 'HEXAGONS'"),
        ("POINTS", "OFFSETS", "unknown section"),
        ("CELL_DATA", "POLYGONS 1 2\n1 0\nCELL_DATA", "POLYGONS occurs twice"),
        ("LOOKUP_TABLE default\n", "", "LOOKUP_TABLE"),
        ("SPACE=RAS", "SPACE=LPS", "LPS and RAS"),
        ("SPACE=RAS", "SPACE=SCANNER", "SCANNER"),
        ("1 1 1 1 1", "1 1 nan 1 1", "weight 2 is nan"),
        ("1 1 1 1 1", "1 1 -2 1 1", "weight 2 is -2"),
        ("\n\nPOLYGONS", "\nPOLYGONS", "no empty line"),
        ("POINTS 5 double", "POINTS 5 variant", "'variant'"),
        ("0 0 1", "0 inf 1", "point 0 is not finite"),
    ],
)
def test_what_a_vtk_file_must_not_hold(tmp_path, old, new, message):
    text = SOUND["POLYGONS-3.0-False.vtk"].decode()
    assert old in text
    with pytest.raises(InputError, match=message):
        read(tmp_path, text.replace(old, new, 1).encode())


@pytest.mark.fault(104)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1.0\n", "2.0\n", "format ascii 2.0"),
        ("format ascii", "format utf8", "format utf8"),
        ("float z", "float w", "no property 'z'"),
        ("float z", "float y", "two properties 'y'"),
        ("float z", "half z", "type 'half'"),
        ("element face", "element vertex", "element vertex"),
        ("vertex_indices", "corners", "no list vertex_indices"),
        ("element face 2", "element strange 0\nelement face 2", "no property"),
        ("element face", "element tristrips", "triangle strips"),
        ("comment end_header", "coment end_header", "coment"),
        ("element face 2", "element face 1", "more than its header says"),
        ("0.0 0.0 1.0", "0.0 nan 1.0", "point 0 is not finite"),
        ("3\n0 1 2\n", "3\n0 1 9\n", "vertices 0 to 9"),
        ("3\n0 1 2\n", "3\n0 1 1.5\n", "whole"),
        ("3\n0 1 2\n", "2.5\n0 1 2\n", "whole"),
        ("3\n0 1 2\n", "0\n", "0 corners"),
    ],
)
def test_what_a_ply_file_must_not_hold(tmp_path, old, new, message):
    text = SOUND["ascii-False.ply"].decode()
    assert old in text
    with pytest.raises(InputError, match=message):
        read(tmp_path, text.replace(old, new, 1).encode(), "ply")


def test_many_small_sections_take_linear_time(tmp_path):
    begin = time.process_time()
    arrays = "".join(f"a{k} 1 1 float\n1\n" for k in range(20000))
    head = "# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 1 float\n0 0 0\nFIELD FieldData 20000\n"
    assert len(read(tmp_path, (head + arrays).encode()).points) == 1
    assert time.process_time() - begin < 3


def test_simplices_keep_the_order_of_the_file():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 9, n) for n in rng.integers(3, 7, 50)]
    found = Cells("POLYGONS", np.cumsum([0, *map(len, rows)]), np.concatenate(rows)).simplices()[0]
    assert found.tolist() == [[row[0], row[k], row[k + 1]] for row in rows for k in range(1, len(row) - 1)]


@pytest.mark.fault(43)
def test_shapes_are_written_as_vtk_with_finite_numbers(tmp_path):
    for name in ("x.ply", "x.stl", "x", "x.vtk.gz"):
        with pytest.raises(ConfigError, match=r"\.vtk"):
            io.write_mesh(tmp_path / name, POINTS, None)
    for bad in (np.nan, np.inf, 1e300):
        with np.errstate(over="ignore"), pytest.raises(OutputError, match="not finite"):
            io.write_mesh(tmp_path / "x.vtk", POINTS + bad, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(35)
@pytest.mark.parametrize(("name", "read"), [("m.vtk", io.read_mesh), ("m.ply", io.read_mesh), ("p.csv", lambda p: io.read_points(p, 3))])
def test_a_file_larger_than_the_memory_is_not_read(tmp_path, name, read):
    with open(tmp_path / name, "wb") as f:
        f.truncate(1 << 42)  # sparse: it takes no space
    with pytest.raises(ResourceError, match="GiB"):
        read(tmp_path / name)


@pytest.mark.fault(108)
def test_a_written_shape_declares_its_frame(tmp_path):
    io.write_mesh(tmp_path / "x.vtk", POINTS, None)
    assert (tmp_path / "x.vtk").read_bytes().split(b"\n")[1].endswith(b"SPACE=RAS")
    assert np.allclose(io.read_mesh(tmp_path / "x.vtk").points, POINTS)
