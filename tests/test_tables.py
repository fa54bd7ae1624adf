"""CSV files of any origin: whole, or an error that names the line."""

from __future__ import annotations

import csv
import io as text_io

import numpy as np
import pytest
import torch

from rdmm import io
from rdmm.data.inputs import read_inputs, read_shapes
from rdmm.data.pair_list import read_pairs
from rdmm.data.training.tables import TableSource
from rdmm.io.tables import read_rows
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.types import ConfigError, InputError

MARKS = ["fixed_x", "fixed_y", "fixed_z", "moving_x", "moving_y", "moving_z", "region"]

READERS = {
    "landmarks": (MARKS, ["1", "2", "3", "4", "5", "6", "liver"], lambda p: io.read_landmarks(p), InputError),
    "points": (["x", "y", "z", "id"], ["1", "2", "3", "a"], lambda p: io.read_points(p, 3), InputError),
    "pairs": (["id", "fixed", "moving"], ["a", "f.nii", "m.nii"], lambda p: read_pairs(p), ConfigError),
    "items": (["image", "subject"], ["f.nii", "s"], lambda p: TableSource(str(p)).items(), ConfigError),
}


def file(tmp_path, *rows, ends="\n", start=""):
    path = tmp_path / "t.csv"
    path.write_text(start + "".join(",".join(row) + ends for row in rows), encoding="utf-8", newline="")
    return path


@pytest.mark.fault(100)
@pytest.mark.parametrize("kind", READERS)
def test_columns_and_fields_fit_or_are_an_error_with_the_line(tmp_path, kind):
    columns, row, read, error = READERS[kind]
    for column in columns:
        with pytest.raises(error, match=f"line 1: the column '{column}' occurs twice"):
            read(file(tmp_path, [*columns, f" {column} "], [*row, "9"]))
    with pytest.raises(error, match="line 3: more fields"):
        read(file(tmp_path, columns, row, [*row, "surplus"]))
    with pytest.raises(error, match="line 2: fewer fields"):
        read(file(tmp_path, columns, row[:-1]))
    for k in range(len(columns)):
        with pytest.raises(error, match="line 2: field larger"):
            read(file(tmp_path, columns, [*row[:k], "1" * 200_000, *row[k + 1 :]]))
        with pytest.raises(error, match="line 2: it holds a NUL"):
            read(file(tmp_path, columns, [*row[:k], row[k] + "\0", *row[k + 1 :]]))
    with pytest.raises(error, match="line 3"):
        read(file(tmp_path, columns, row, [f'"{row[0]}', *row[1:]]))  # the quote never ends
    (tmp_path / "t.csv").write_bytes(",".join(columns).encode("utf-16"))
    with pytest.raises(error, match="UTF-8"):
        read(tmp_path / "t.csv")
    with pytest.raises(error, match="no column"):
        read(file(tmp_path, [], []))


@pytest.mark.fault(42, 78)
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_ends_marks_and_empty_lines_change_nothing(tmp_path, kind, ends, start):
    columns, row, read, error = READERS[kind]
    read(file(tmp_path, columns, [], row, [], ends=ends, start=start))
    with pytest.raises(error, match="line 5"):
        read(file(tmp_path, columns, [], row, [], [*row, "x"], ends=ends, start=start))


@pytest.mark.fault(42)
@pytest.mark.parametrize("kind", ["landmarks", "points"])
def test_what_is_no_number_is_named_by_its_line(tmp_path, kind):
    columns, row, read, _ = READERS[kind]
    for text in ("", " ", "x", "1_000", "1.2.3", "nan", "-inf", "1e999", "0x1", "١", "None", "1;2"):
        with pytest.raises(InputError, match=rf"row 6: {columns[1]} is"):
            read(file(tmp_path, columns, [], row, [], [], [row[0], text, *row[2:]]))


def images():
    grid = Grid((20, 20, 20), np.eye(4))
    x = torch.rand(1, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    return Image(x, grid), Image(x.flip(2), grid)


@pytest.mark.fault(42)
def test_landmarks_of_both_sides_lie_inside_their_images(tmp_path):
    inside = ["5", "5", "5"]
    for far in (["500", "5", "5"], ["5", "-40", "5"], ["5", "5", "25"], ["1e8", "5", "5"]):
        for kind, row in (("fixed", [*far, *inside, "a"]), ("moving", [*inside, *far, "a"])):
            path = file(tmp_path, MARKS, [], [*inside, *inside, "a"], row)
            with pytest.raises(InputError, match=f"row 4: the {kind} point .* far outside the {kind} input"):
                read_inputs(*images(), landmarks=path)
            shapes = [Measure(20 * torch.rand(1, 3, 9, generator=torch.Generator().manual_seed(k))) for k in (0, 1)]
            if far[2] != "25":
                with pytest.raises(InputError, match=f"row 4: the {kind} point"):
                    read_shapes(*shapes, landmarks=path)
    assert read_inputs(*images(), landmarks=file(tmp_path, MARKS, [*inside, *inside, "a"])).landmarks is not None


def test_landmarks_of_space_in_the_plane_are_an_error(tmp_path):
    flat = file(tmp_path, MARKS, ["1", "2", "7", "4", "5", "7", "a"], ["1", "3", "7", "4", "6", "7", "a"])
    assert io.read_landmarks(flat, 2)[0].tolist() == [[1, 2], [1, 3]]
    with pytest.raises(InputError, match="landmarks are 3D"):
        io.read_landmarks(file(tmp_path, MARKS, ["1", "2", "7", "4", "5", "8", "a"]), 2)


@pytest.mark.fault(42)
def test_keypoints_are_named_by_their_line(tmp_path):
    path = tmp_path / "k.csv"
    for text, message in (
        ("1,2,3\n\n\n1,2\n", "row 4 holds 2"),
        ("1,2,3\n\n1,x,3\n", "row 3: y is 'x'"),
        ("1,2,3\n\n1,2,99\n", r"row 3: .* outside the image's \(9, 9, 9\)"),
        ("1,2," + "3" * 200_000, "line 1: field larger"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            io.read_keypoints(path, 3, (9, 9, 9))


@pytest.mark.fault(100)
def test_no_cell_of_a_table_is_a_formula(tmp_path):
    starts = "=+-@\t\r"
    rows = [{"id": f"{c}cmd|'/c calc'!A1", "message": f"{c}SUM(A1)", "dice": -0.5, f"{c}x": None} for c in starts]
    rows += [{"id": "-1.5", "message": "+2e3", "dice": float("-inf")}, {"id": "a=b", "message": "", "dice": 1}]
    io.write_table(tmp_path / "t.csv", rows)
    cells = list(csv.reader(text_io.StringIO((tmp_path / "t.csv").read_bytes().decode(), newline="")))
    for cell in (c for row in cells for c in row if c[:1] and c[0] in starts):
        float(cell)  # what begins so is a number
    assert [c[0] for c in cells[1:]] == [*(f"'{c}cmd|'/c calc'!A1" for c in starts), "-1.5", "a=b"]
    assert [c[2] for c in cells[1:]] == ["-0.5"] * 6 + ["-inf", "1"]
    assert read_rows(tmp_path / "t.csv").columns[3:] == [f"'{c}x" for c in starts]


@pytest.mark.fault(100)
def test_a_key_of_a_list_in_json_occurs_once(tmp_path):
    pair = '{"fixed": "./a.nii", "moving": "./b.nii"}'
    for text in (
        f'{{"registration_val": [{pair}], "registration_val": [{pair}]}}',
        f'{{"registration_val": [{pair[:-1]}, "moving": "./c.nii"}}]}}',
    ):
        (tmp_path / "d.json").write_text(text)
        with pytest.raises(ConfigError, match="occurs twice"):
            read_pairs(tmp_path / "d.json")
