"""rdmm points: lists of points of other tools keep their frame, their columns and their digits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rdmm import io
from rdmm.cli.transforms import points as command
from rdmm.types import ConfigError, InputError, OutputError
from rdmm.workflows import transforms

RAS = np.array([[27.123456789, -97.5, -13], [1e-7, 2.5, 3]])
MATRIX = np.array([[1, 0.1, 0, 3], [0, 2, 0, -5], [0, 0, 1, 0.25], [0, 0, 0, 1.0]])


@pytest.fixture
def affine(tmp_path):
    io.write_affine(tmp_path / "a.mat", MATRIX)
    return str(tmp_path / "a.mat")


def in_frame(points, frame):
    return points * [-1, -1, 1] if frame in ("LPS", "1") else points


def fcsv(points, frame, more=""):
    head = (
        f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {frame}\n# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc\n"
    )
    return head + "".join(f"{k},{x},{y},{z},0,0,0,1,1,1,0,F-{k},{more}\n" for k, (x, y, z) in enumerate(in_frame(points, frame)))


def markups(points, frame, **more):
    control = [{"id": str(k), "label": f"F-{k}", "position": p} for k, p in enumerate(in_frame(points, frame).tolist())]
    return json.dumps({"markups": [{"type": "Fiducial", "coordinateSystem": frame, "controlPoints": control} | more]})


def run(tmp_path, affine, name, text, **options):
    (tmp_path / name).write_text(text)
    transforms.points(str(tmp_path / name), [affine], str(tmp_path / "q.csv"), **({"lps": False, "overwrite": True} | options))
    return io.tables.read_rows(tmp_path / "q.csv")


def xyz(table):
    return np.array([[float(row[a]) for a in "xyz"] for row in table.rows])


@pytest.mark.fault(108)
@pytest.mark.parametrize("frame", ["LPS", "RAS", "0", "1"])
@pytest.mark.parametrize("more", ["", ",2,0"])
def test_markups_are_read_in_the_frame_that_they_declare(tmp_path, affine, frame, more):
    moved = RAS @ MATRIX[:3, :3].T + MATRIX[:3, 3]
    table = run(tmp_path, affine, "p.fcsv", fcsv(RAS, frame, more))
    assert np.allclose(xyz(table), moved, rtol=1e-8)
    assert [row["label"] for row in table.rows] == ["F-0", "F-1"]
    table = run(tmp_path, affine, "p.mrk.json", markups(RAS, frame))
    assert np.allclose(xyz(table), moved, rtol=1e-8)
    assert [(row["id"], row["label"]) for row in table.rows] == [("0", "F-0"), ("1", "F-1")]


@pytest.mark.fault(108)
def test_markups_that_declare_no_usable_frame_are_refused(tmp_path, affine):
    for frame in ("IJK", "2", "", "lps?"):
        for name, text in (("p.fcsv", fcsv(RAS, frame)), ("p.mrk.json", markups(RAS, frame))):
            with pytest.raises(InputError, match="LPS or RAS"):
                run(tmp_path, affine, name, text)
    sound = json.loads(markups(RAS, "LPS"))
    undefined, short, no_frame = (json.loads(json.dumps(sound)) for _ in range(3))
    undefined["markups"][0]["controlPoints"][1]["position"] = None
    short["markups"][0]["controlPoints"][1]["position"] = [1, 2]
    del no_frame["markups"][0]["coordinateSystem"]
    for wrong in (undefined, short, no_frame, {}, [], {"markups": [1]}, 5, json.loads(markups(RAS, "LPS", coordinateUnits="um"))):
        with pytest.raises(InputError, match=r"p\.mrk\.json"):
            run(tmp_path, affine, "p.mrk.json", json.dumps(wrong))
    for text in ("", "{", "[" * 100_000, '{"markups": []}'):
        with pytest.raises(InputError, match=r"p\.mrk\.json"):
            run(tmp_path, affine, "p.mrk.json", text)
    with pytest.raises(ConfigError, match="leave out lps=True"):
        run(tmp_path, affine, "p.fcsv", fcsv(RAS, "LPS"), lps=True)


@pytest.mark.fault(108)
def test_other_columns_and_nine_digits_are_kept(tmp_path, affine):
    io.write_affine(affine, np.eye(4))
    table = run(tmp_path, affine, "p.csv", 'id,z,label,y,x\ncellA,3.3e-6,"a, b",2.5e-7,1.2345678e-6\n=1,1,,-0,123456789\n')
    assert (tmp_path / "q.csv").read_text() == 'id,z,label,y,x\ncellA,3.3e-06,"a, b",2.5e-07,1.2345678e-06\n=1,1,,0,123456789\n'
    assert table.lines == [2, 3]


@pytest.mark.fault(108)
def test_lps_is_read_and_written(tmp_path, affine, caplog):
    moved = RAS @ MATRIX[:3, :3].T + MATRIX[:3, 3]
    rows = "".join(f"{x:.17g},{y:.17g},{z:.17g},0,{k}\n" for k, (x, y, z) in enumerate(in_frame(RAS, "LPS")))
    table = run(tmp_path, affine, "p.csv", "x,y,z,t,label\n" + rows, lps=True)
    assert np.allclose(in_frame(xyz(table), "LPS"), moved, rtol=1e-8)
    assert not caplog.text
    run(tmp_path, affine, "p.csv", "x,y,z,t,label\n" + rows)
    assert "columns of ANTs" in caplog.text and "lps=True" in caplog.text
    assert any("--lps" in p.opts for p in command.params)


@pytest.mark.fault(17)
def test_points_and_transform_have_one_dimension(tmp_path, affine):
    for text in ("x,y\n1,2\n", "x,y,label\n1,2,a\n"):
        with pytest.raises(InputError, match=r"points are 2D .* transform is 3D"):
            run(tmp_path, affine, "p.csv", text)
    io.write_affine(tmp_path / "a.mat", np.eye(3))
    for name, text in (
        ("p.csv", "x,y,z\n1,2,3\n"),
        ("p.fcsv", fcsv(RAS, "LPS")),
        ("p.mrk.json", markups(RAS, "RAS")),
    ):
        with pytest.raises(InputError, match=r"points are 3D .* transform is 2D"):
            run(tmp_path, affine, name, text)


@pytest.mark.fault(43)
def test_only_known_endings_are_written_and_nothing_that_is_not_finite(tmp_path, affine):
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    before = sorted(tmp_path.iterdir())
    for name in ("q.nii.gz", "q.json", "q", "q.pts", "csv"):
        with pytest.raises(ConfigError, match=r"\.csv"):
            transforms.points(str(tmp_path / "p.csv"), [affine], str(tmp_path / name), lps=False, overwrite=False)
    given = io.read_points(tmp_path / "p.csv", 3)
    for bad in (np.nan, np.inf, -np.inf):
        given.points[0, 1] = bad
        with pytest.raises(OutputError, match="row 2 goes to"):
            io.write_points(tmp_path / "q.csv", given)
    assert sorted(tmp_path.iterdir()) == before
