"""rdmm points on meshes, streamlines, markups and tables of any separator: the same vertices as by way of a CSV, and all else kept."""

from __future__ import annotations

import base64
import json
import re
import zlib

import nibabel as nib
import numpy as np
import pytest

from rdmm import io
from rdmm.io.meshes import MESH_ENDINGS, read_polydata, write_polydata
from rdmm.io.meshes.files import READERS, WRITERS
from rdmm.io.meshes.mesh import PolyData, as_rows
from rdmm.types import ConfigError, InputError
from rdmm.workflows import transforms

MATRIX = np.array([[1, 0.1, 0, 3], [0, 2, 0, -5], [0, 0, 1, 0.25], [0, 0, 0, 1.0]])
POINTS = np.array([[0, 0, 1], [10, 0, 2], [10, 10, 3.5], [0, 12.25, 4], [5, 20, -5]])
MOVED = POINTS @ MATRIX[:3, :3].T + MATRIX[:3, 3]
TRIANGLES = np.array([[0, 1, 2], [0, 2, 3], [2, 4, 3]])
COLORS = np.arange(15, dtype=np.uint8).reshape(5, 3)


@pytest.fixture
def run(tmp_path):
    """Moves a file by MATRIX to a file of another name, and reads this one."""
    io.write_affine(tmp_path / "a.mat", MATRIX)

    def moved(name, out, *, lps=False):
        transforms.points(str(tmp_path / name), [str(tmp_path / "a.mat")], str(tmp_path / out), lps=lps, overwrite=True)
        return read_polydata(tmp_path / out) if io.is_mesh(out) else io.tables.read_rows(tmp_path / out)

    return moved


def xyz(table):
    return np.array([[float(row[a]) for a in "xyz"] for row in table.rows])


def surface(tmp_path, name, **more):
    data = {"thickness": np.linspace(1, 2, 5), "RGB": COLORS, "label": np.arange(5, dtype=np.int32)}
    write_polydata(tmp_path / name, PolyData(POINTS, [as_rows("POLYGONS", TRIANGLES)], data, {"area": np.array([1.5, 2, 3])}, **more))


def triangles_of(points, data):
    """The corners (m, 3, 3) of the triangles."""
    return points[np.array(data.part("POLYGONS")[0])]


@pytest.mark.fault(104)
@pytest.mark.parametrize("ending", ["vtk", "vtp", "ply", "stl", "obj", "gii"])
def test_surfaces_move_as_their_vertices_in_a_csv(tmp_path, run, ending, caplog):
    surface(tmp_path, f"s.{ending}")
    caplog.clear()
    before, after = read_polydata(tmp_path / f"s.{ending}"), run(f"s.{ending}", f"q.{ending}")
    run(f"s.{ending}", "q.csv")
    run("q.csv", f"p.{'vtp' if ending in ('stl', 'gii') else ending}")  # a CSV to points of this format
    assert np.allclose(after.points, xyz(io.tables.read_rows(tmp_path / "q.csv")), atol=1e-5)
    assert np.allclose(triangles_of(after.points, after), MOVED[TRIANGLES], atol=1e-5)
    assert set(after.point_data) == set(before.point_data) and set(after.cell_data) == set(before.cell_data)
    for name, values in {**before.point_data, **before.cell_data}.items():
        found = {**after.point_data, **after.cell_data}[name]
        assert found.dtype == values.dtype and np.array_equal(found, values)


@pytest.mark.fault(120)
@pytest.mark.parametrize("ending", ["vtk", "vtp", "ply"])
def test_data_and_colors_are_kept_and_their_loss_is_said(tmp_path, run, ending, caplog):
    surface(tmp_path, f"s.{ending}")
    data = run(f"s.{ending}", f"q.{ending}")
    assert np.array_equal(data.point_data["RGB"], COLORS) and data.point_data["label"].dtype == np.int32
    assert data.cell_data["area"].tolist() == [1.5, 2, 3] and not caplog.text
    run(f"s.{ending}", "q.stl")
    assert all(name in caplog.text for name in ("thickness", "RGB", "label", "area")), caplog.text
    caplog.clear()
    table = run(f"s.{ending}", "q.csv")
    assert table.columns == ["x", "y", "z", "thickness", "label"] and "does not hold RGB" in caplog.text


@pytest.mark.parametrize("ending", ["vtk", "vtp", "ply", "stl", "obj"])
def test_the_frame_that_a_mesh_declares_is_kept(tmp_path, run, ending):
    surface(tmp_path, f"s.{ending}", frame="LPS")
    data = run(f"s.{ending}", f"q.{ending}")
    assert data.frame == "LPS" and np.allclose(triangles_of(data.points, data), MOVED[TRIANGLES], atol=1e-5)
    assert np.allclose(xyz(run(f"s.{ending}", "q.csv"))[:, :2].max(0), MOVED[:, :2].max(0), atol=1e-5)  # RAS+
    with pytest.raises(ConfigError, match="frame is known, LPS; leave out lps=True"):
        run(f"s.{ending}", f"q.{ending}", lps=True)


def test_lps_of_a_mesh_that_declares_no_frame(tmp_path, run):
    lines = [f"v {-x} {-y} {z}" for x, y, z in POINTS] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in TRIANGLES]
    (tmp_path / "s.obj").write_text("\n".join(lines))
    assert np.allclose(run("s.obj", "q.obj", lps=True).points, MOVED)
    assert np.allclose(xyz(run("s.obj", "q.csv", lps=True)), MOVED * [-1, -1, 1])


def test_lines_of_an_obj_file_stay(tmp_path, run, caplog):
    text = (
        "mtllib a.mtl\n# c\nv 0 0 1\nv 1 0 2\nv 1 1 3\nv 2 2 2\nvt 0 1\nvn 0 0 1\ng part\nf 1/1/1 2//1 -2\nf 1//1 2//1 3//1 4//1\nl 1 2 3\n"
    )
    (tmp_path / "s.obj").write_text(text)
    data = run("s.obj", "q.obj")
    lines = (tmp_path / "q.obj").read_text().splitlines()
    assert {"mtllib a.mtl", "vt 0 1", "g part", "f 1/1 2 -2", "f 1 2 3 4", "l 1 2 3"} <= set(lines) and "normals" in caplog.text
    assert [c.kind for c in data.cells] == ["LINES", "POLYGONS"] and [r.tolist() for r in data.part("POLYGONS")[0]] == [
        [0, 1, 2],
        [0, 1, 2, 3],
    ]
    assert io.is_mesh("s.obj") and len(run("s.obj", "q.stl").points) == 4
    for line in ("f 0 1 2", "f 1 2 9", "f a b c", "v 1 2", "curv 0 1 2"):
        (tmp_path / "s.obj").write_text(text + line)
        with pytest.raises(InputError, match=r"s\.obj"):
            run("s.obj", "q.obj")


def test_stl_as_text(tmp_path, run):
    facets = "".join(
        "facet normal 0 0 0\nouter loop\n" + "".join(f"vertex {x} {y} {z}\n" for x, y, z in POINTS[t]) + "endloop\nendfacet\n"
        for t in TRIANGLES
    )
    (tmp_path / "s.stl").write_text(f"solid x\n{facets}endsolid x\n")
    assert np.allclose(run("s.stl", "q.vtk").points, MOVED) and len(run("s.stl", "q.csv").rows) == 5
    for text in (f"solid x\n{facets}", "solid x\nvertex 1 2 x\nvertex 1 2 3\nvertex 1 2 3\nendsolid", "solid x\nendsolid", "x" * 200):
        (tmp_path / "s.stl").write_text(text)
        with pytest.raises(InputError, match=r"s\.stl"):
            run("s.stl", "q.vtk")


def test_an_unstructured_grid_of_points_lines_and_surfaces(tmp_path, run):
    head = "# vtk DataFile Version {}\nx\nASCII\nDATASET UNSTRUCTURED_GRID\nPOINTS 5 float\n" + " ".join(f"{x}" for x in POINTS.ravel())
    tail = "\nCELL_TYPES 4\n5 3 1 9\nCELL_DATA 4\nSCALARS c int 1\nLOOKUP_TABLE default\n10 20 30 40\n"
    old = head.format("3.0") + "\nCELLS 4 14\n3 0 1 2\n2 3 4\n1 0\n4 0 1 2 3\n" + tail
    new = head.format("5.1") + "\nCELLS 5 10\nOFFSETS vtktypeint64\n0 3 5 6 10\nCONNECTIVITY vtktypeint64\n0 1 2 3 4 0 0 1 2 3\n" + tail
    for text in (old, new):
        (tmp_path / "s.vtk").write_text(text)
        data = run("s.vtk", "q.vtk")
        assert [c.kind for c in data.cells] == ["VERTICES", "LINES", "POLYGONS"] and data.cell_data["c"].tolist() == [30, 20, 10, 40]
        assert [r.tolist() for r in data.part("POLYGONS")[0]] == [[0, 1, 2], [0, 1, 2, 3]] and np.allclose(data.points, MOVED, atol=1e-5)
    for wrong in (old.replace("5 3 1 9", "5 3 1 10"), old.replace("CELL_TYPES 4\n5 3 1 9", "CELL_TYPES 3\n5 3 1")):
        (tmp_path / "s.vtk").write_text(wrong)
        with pytest.raises(InputError, match=r"volumes|CELL_TYPES"):
            run("s.vtk", "q.vtk")


def vtp_file(form, *, compressed=False, header="UInt32", order="<", edit=lambda text: text):
    """A .vtp file as VTK writes it: text, base64 (inline or appended) or appended bytes, with texts and normals beside the data."""
    appended = b""

    def put(values, name, kind, parts=1):
        nonlocal appended
        values = np.asarray(values).astype(order + {"Float32": "f4", "Int64": "i8", "UInt8": "u1"}[kind]).ravel()
        head = f'<DataArray type="{kind}" Name="{name}" NumberOfComponents="{parts}"'
        if form == "ascii":
            return f'{head} format="ascii">{" ".join(map(str, values))}</DataArray>'
        word = order + {"UInt32": "u4", "UInt64": "u8"}[header]
        raw, encode = values.tobytes(), (lambda b: b) if form == "raw" else base64.b64encode
        if compressed:
            blocks = [zlib.compress(raw[k : k + 32]) for k in range(0, len(raw), 32)]
            counts = np.array([len(blocks), 32, len(raw) % 32, *map(len, blocks)], word).tobytes()
            data = encode(counts) + encode(b"".join(blocks))
        else:
            data = encode(np.array([len(raw)], word).tobytes() + raw)
        if form == "binary":
            return f'{head} format="binary">\n{data.decode()}\n</DataArray>'
        appended += data
        return f'{head} format="appended" offset="{len(appended) - len(data)}"/>'

    data = put(np.arange(5), "label", "Int64") + put(POINTS, "n", "Float32", 3) + put(COLORS, "RGB", "UInt8", 3)
    body = f'<PointData Normals="n">{data}</PointData><Points>{put(POINTS, "Points", "Float32", 3)}</Points>'
    body += f"<Polys>{put(TRIANGLES, 'connectivity', 'Int64')}{put([3, 6, 9], 'offsets', 'Int64')}</Polys>"
    kind = "raw" if form == "raw" else "base64"
    text = (
        f'<?xml version="1.0"?>\n<VTKFile type="PolyData" byte_order="{"Little" if order == "<" else "Big"}Endian" header_type="{header}"'
        f"{' compressor=' + chr(34) + 'vtkZLibDataCompressor' + chr(34) if compressed else ''}><PolyData>"
        f'<Piece NumberOfPoints="5" NumberOfPolys="3">{body}</Piece></PolyData>'
    )
    tail = f'<AppendedData encoding="{kind}">_'.encode() + appended + b"</AppendedData>" if form in ("raw", "base64") else b""
    return edit(text).encode() + tail + b"</VTKFile>"


@pytest.mark.fault(104)
@pytest.mark.parametrize("form", ["ascii", "binary", "raw", "base64"])
def test_all_forms_of_vtp_hold_the_same_surface(tmp_path, run, form, caplog):
    for more in ({}, {"header": "UInt64"}, {"compressed": True}, {"compressed": True, "header": "UInt64", "order": ">"}):
        (tmp_path / "s.vtp").write_bytes(vtp_file(form, **more))
        data = run("s.vtp", "q.vtp")
        assert np.allclose(data.points, MOVED, atol=1e-5) and np.array_equal(np.array(data.part("POLYGONS")[0]), TRIANGLES)
        assert data.point_data["label"].tolist() == [0, 1, 2, 3, 4] and np.array_equal(data.point_data["RGB"], COLORS)
        assert "normals" in caplog.text and "n" not in data.point_data
        content = (tmp_path / "s.vtp").read_bytes()
        for cut in range(60, len(content) - 30, 97):
            (tmp_path / "s.vtp").write_bytes(content[:cut])
            with pytest.raises(InputError, match=r"s\.vtp"):
                run("s.vtp", "q.vtp")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type="PolyData"', 'type="UnstructuredGrid"', "PolyData"),
        ("<PolyData>", "<PolyData><Piece/>", "2 pieces"),
        ('byte_order="L', 'compressor="vtkLZ4DataCompressor" byte_order="L', "vtkLZ4"),
        ('<?xml version="1.0"?>', '<!DOCTYPE x [<!ENTITY a "b">]>', "entities"),
        ('NumberOfPoints="5"', 'NumberOfPoints="6"', "numbers"),
        ('NumberOfPoints="5"', 'NumberOfPoints="99999999999999"', "numbers"),
    ],
)
def test_what_a_vtp_file_must_not_hold(tmp_path, run, old, new, message):
    (tmp_path / "s.vtp").write_bytes(vtp_file("ascii", edit=lambda text: text.replace(old, new, 1)))
    with pytest.raises(InputError, match=message):
        run("s.vtp", "q.vtp")


def test_gifti_keeps_its_metadata_and_not_the_way_to_another_space(tmp_path, run):
    """The coordinates stay in their space; the affine to a third one, such as Talairach, began at the old place."""
    space = nib.gifti.GiftiCoordSystem("NIFTI_XFORM_SCANNER_ANAT", "NIFTI_XFORM_TALAIRACH", np.diag([2.0, 2, 2, 1]))
    meta = nib.gifti.GiftiMetaData(AnatomicalStructurePrimary="CortexLeft")
    arrays = [
        nib.gifti.GiftiDataArray(POINTS.astype(np.float32), intent="NIFTI_INTENT_POINTSET", coordsys=space, meta=meta),
        nib.gifti.GiftiDataArray(TRIANGLES.astype(np.int32), intent="NIFTI_INTENT_TRIANGLE"),
    ]
    nib.save(nib.GiftiImage(darrays=arrays, meta=nib.gifti.GiftiMetaData(Subject="s1")), tmp_path / "s.gii")
    run("s.gii", "q.gii")
    image = nib.load(tmp_path / "q.gii")
    points = image.get_arrays_from_intent("NIFTI_INTENT_POINTSET")[0]
    assert np.allclose(points.data, MOVED, atol=1e-5) and points.meta["AnatomicalStructurePrimary"] == "CortexLeft"
    assert image.meta["Subject"] == "s1" and np.array_equal(image.darrays[1].data, TRIANGLES)
    assert (points.coordsys.dataspace, points.coordsys.xformspace) == (1, 1) and np.array_equal(points.coordsys.xform, np.eye(4))
    for wrong in (b"", b"<GIFTI", (tmp_path / "q.gii").read_bytes()[:-300]):
        (tmp_path / "s.gii").write_bytes(wrong)
        with pytest.raises(InputError, match=r"s\.gii"):
            run("s.gii", "q.gii")
    bomb = base64.b64encode(zlib.compress(bytes(10**6)))
    content = (tmp_path / "q.gii").read_bytes()
    (tmp_path / "s.gii").write_bytes(re.sub(rb"<Data>[^<]*</Data>", b"<Data>" + bomb + b"</Data>", content, count=1))
    with pytest.raises(InputError, match="more than the sizes"):
        run("s.gii", "q.gii")


def streamlines(tmp_path, ending):
    """Two streamlines, on the grid of an oblique image."""
    header = {
        "voxel_to_rasmm": np.array([[0, -2, 0, 40], [1.5, 0, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1.0]]),
        "voxel_sizes": (1.5, 2, 3),
        "dimensions": (30, 40, 20),
        "voxel_order": "ALS",
    }
    lines = [POINTS[:3].astype(np.float32), POINTS[3:].astype(np.float32)]
    data = {"data_per_point": {"fa": [np.ones((3, 1)), np.zeros((2, 1))]}, "data_per_streamline": {"bundle": [[1, 2], [3, 4]]}}
    tracts = nib.streamlines.Tractogram(lines, affine_to_rasmm=np.eye(4), **(data if ending == "trk" else {}))
    nib.streamlines.save(tracts, str(tmp_path / f"s.{ending}"), header=header if ending == "trk" else None)


@pytest.mark.fault(120)
@pytest.mark.parametrize("ending", ["trk", "tck"])
def test_streamlines_keep_header_and_data(tmp_path, run, ending, caplog):
    streamlines(tmp_path, ending)
    run(f"s.{ending}", f"q.{ending}")
    before, after = (nib.streamlines.load(tmp_path / name) for name in (f"s.{ending}", f"q.{ending}"))
    assert np.allclose(np.concatenate(after.streamlines), MOVED, atol=1e-4) and [len(s) for s in after.streamlines] == [3, 2]
    assert set(after.header) == set(before.header)
    if ending == "trk":
        assert all(
            np.array_equal(after.header[k], before.header[k]) for k in ("voxel_to_rasmm", "voxel_sizes", "dimensions", "voxel_order")
        )
        assert np.array_equal(after.tractogram.data_per_streamline["bundle"], [[1, 2], [3, 4]])
        assert np.array_equal(np.concatenate(list(after.tractogram.data_per_point["fa"])).ravel(), [1, 1, 1, 0, 0])
        assert not caplog.text
        run("s.trk", "q.tck")
        assert "fa, bundle" in caplog.text
    as_vtk = run(f"s.{ending}", "q.vtk")
    assert [r.tolist() for r in as_vtk.part("LINES")[0]] == [[0, 1, 2], [3, 4]] and np.allclose(as_vtk.points, MOVED, atol=1e-4)
    run("q.vtk", "r.tck")
    with pytest.raises(ConfigError, match=r"only another \.trk knows"):
        run("q.vtk", "r.trk")
    with pytest.raises(ConfigError, match="leave out lps=True"):
        run(f"s.{ending}", "q.vtk", lps=True)
    content = (tmp_path / f"s.{ending}").read_bytes()
    for wrong in (content[: len(content) // 2], content[:10], b"x" * 2000):
        (tmp_path / f"s.{ending}").write_bytes(wrong)
        with pytest.raises(InputError, match=rf"s\.{ending}"):
            run(f"s.{ending}", "q.vtk")


def test_streamlines_of_one_point(tmp_path, run, caplog):
    """Files of streamlines may hold them; meshes do not."""
    lines = [POINTS[:1].astype(np.float32), POINTS[1:3].astype(np.float32), POINTS[3:].astype(np.float32)]
    nib.streamlines.save(nib.streamlines.Tractogram(lines, affine_to_rasmm=np.eye(4)), str(tmp_path / "s.tck"))
    run("s.tck", "q.tck")
    assert [len(s) for s in nib.streamlines.load(tmp_path / "q.tck").streamlines] == [1, 2, 2] and not caplog.text
    data = run("s.tck", "q.vtk")
    assert [r.tolist() for r in data.part("LINES")[0]] == [[1, 2], [3, 4]] and "1 lines of one point" not in caplog.text
    assert np.allclose(data.points, MOVED, atol=1e-5) and "1 line of one point" in caplog.text


def test_markups_are_written_and_read_back(tmp_path, run):
    (tmp_path / "p.csv").write_text("label,x,y,z\n" + "".join(f"n{k},{x},{y},{z}\n" for k, (x, y, z) in enumerate(POINTS)))
    for name in ("q.fcsv", "q.mrk.json"):
        run("p.csv", "q.csv")
        transforms.points(str(tmp_path / "p.csv"), [str(tmp_path / "a.mat")], str(tmp_path / name), lps=False, overwrite=True)
        again = io.read_points(tmp_path / name, 3)
        assert np.allclose(again.points, MOVED, rtol=1e-8) and [r["label"] for r in again.table.rows] == [f"n{k}" for k in range(5)]
    content = json.loads((tmp_path / "q.mrk.json").read_text())
    content["markups"][0] |= {
        "display": {"color": [1, 0, 0]},
        "type": "Curve",
        "coordinateSystem": "RAS",
        "measurements": [{"name": "length"}],
    }
    content["markups"][0]["controlPoints"][0]["selected"] = False
    (tmp_path / "p.mrk.json").write_text(json.dumps(content))
    io.write_points(tmp_path / "r.mrk.json", io.read_points(tmp_path / "p.mrk.json", 3))
    content["markups"][0].pop("measurements")  # Slicer computes the length of the moved curve
    assert json.loads((tmp_path / "r.mrk.json").read_text()) == content


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", "   "])
@pytest.mark.parametrize("names", ["x,y,z", "X,Y,Z", "r,a,s", "l,p,s"])
def test_tables_of_any_separator_and_case(tmp_path, run, separator, names):
    points = POINTS * [-1, -1, 1] if names == "l,p,s" else POINTS
    rows = [names.split(","), *(map(str, p) for p in points)]
    (tmp_path / "p.txt").write_text("\n".join(separator.join(row) for row in rows))
    for out in ("q.csv", "q.tsv", "q.txt"):
        table = run("p.txt", out)
        found = np.array([[float(x) for x in row.values()] for row in table.rows])
        assert table.columns == names.split(",") and np.allclose(found * ([-1, -1, 1] if names == "l,p,s" else 1), MOVED)


def test_shapes_to_register_may_be_of_any_format(tmp_path):
    surface(tmp_path, "s.vtk")
    meshes = []
    for ending in ("vtk", "vtp", "ply", "stl", "obj", "gii"):
        surface(tmp_path, f"s.{ending}")
        meshes.append(io.read_mesh(tmp_path / f"s.{ending}"))
    assert all(np.allclose(m.points[m.cells], POINTS[TRIANGLES]) for m in meshes)
    streamlines(tmp_path, "tck")
    assert io.read_mesh(tmp_path / "s.tck").cells.tolist() == [[0, 1], [1, 2], [3, 4]]


def test_a_mesh_through_a_transform_of_the_plane(tmp_path, run):
    io.write_affine(tmp_path / "a.mat", np.diag([2.0, 3, 1]))
    (tmp_path / "s.obj").write_text("v 1 2 0\nv 3 4 0\nl 1 2\n")
    assert run("s.obj", "q.vtk").points.tolist() == [[2, 6, 0], [6, 12, 0]]
    (tmp_path / "s.obj").write_text("v 1 2 0\nv 3 4 1\nl 1 2\n")
    with pytest.raises(InputError, match="z is not 0"):
        run("s.obj", "q.vtk")


def test_points_of_ants_in_the_plane(tmp_path, run):
    """ANTs writes x, y, z, t in 2D, too, and Slicer x, y, z, with z = 0: z stays. Any other z is a point of space."""
    io.write_affine(tmp_path / "a.mat", np.array([[2.0, 0, 1], [0, 3, 5], [0, 0, 1]]))
    (tmp_path / "p.csv").write_text("x,y,z,t,label\n-1,-2,0,0,a\n")
    assert list(run("p.csv", "q.csv", lps=True).rows[0].values()) == ["-3", "-11", "0", "0", "a"]
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,0\n")
    assert list(run("p.csv", "q.csv", lps=True).rows[0].values()) == ["1", "1", "0"]
    for text in ("x,y,z,t\n1,2,3,0\n", "x,y,z\n1,2,3\n"):
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(InputError, match=r"points are 3D .* remove the column"):
            run("p.csv", "q.csv", lps=True)
    (tmp_path / "p.csv").write_text("fixed;moving\na;b\n")
    with pytest.raises(InputError, match="no column 'x'; the header must hold x, y"):
        run("p.csv", "q.csv")


def test_every_ending_has_a_reader_and_a_writer():
    assert set(MESH_ENDINGS) == set(READERS) == set(WRITERS)
