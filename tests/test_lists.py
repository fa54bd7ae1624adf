"""Lists as people write them: separators, comments, columns of their own, files in other folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.study import Study, table_rows
from eval.tables import write_tables
from rdmm.data import PairTable
from rdmm.data.pair_list import read_pairs
from rdmm.io.points import read_points
from rdmm.io.tables import read_landmarks, read_rows
from rdmm.types import ConfigError, InputError
from rdmm.workflows.batch import Batch
from rdmm.workflows.launchers import failure_outcome


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_paths_lead_anywhere(tmp_path):
    """Relative paths of a list of one's own start at its folder, and may leave it."""
    path = write(tmp_path / "lists/pairs.csv", "fixed,moving\n../data/f.nii.gz,/elsewhere/m.nii.gz\n")
    (row,) = read_pairs(path)
    assert row.files == {"fixed": tmp_path / "lists/../data/f.nii.gz", "moving": Path("/elsewhere/m.nii.gz")}
    with pytest.raises(ConfigError, match="leads out of"):  # a root is a promise
        read_pairs(path, str(tmp_path / "lists"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff", "# a study, of two sites; one scanner\n\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_comments_and_empty_rows(tmp_path, separator, start, end):
    rows = [["id", "fixed", "moving", "site"], ["a", '"f;1,2.nii"', "m.nii", ""], ["#b", "f.nii", "m.nii", "x"], ["", "", "", ""], [" "]]
    path = write(tmp_path / "pairs.csv", start + end.join(separator.join(row) for row in rows) + end)
    (row,) = read_pairs(path)
    assert (row.id, row.files["fixed"].name, row.notes) == ("a", "f;1,2.nii", {"site": ""})


def test_columns_of_ones_own_pass_and_misspelled_ones_do_not(tmp_path):
    path = write(tmp_path / "pairs.csv", "id,age,fixed,moving,site,fixed_age\na,61,f.nii,m.nii,Oslo,3\n")
    assert read_pairs(path)[0].notes == {"age": "61", "site": "Oslo", "fixed_age": "3"}
    for wrong, right in (("fixed_label", "fixed_labels"), ("landmark", "landmarks"), ("Moving_mask", "moving_mask")):
        write(path, f"fixed,moving,{wrong}\nf.nii,m.nii,x.nii\n")
        with pytest.raises(ConfigError, match=f"line 1: unknown column '{wrong}' .did you mean '{right}'"):
            read_pairs(path)


def test_columns_of_ones_own_are_in_the_table_of_results(tmp_path):
    path = write(tmp_path / "pairs.csv", "id;age;fixed;moving;message\na;61;f.nii;m.nii;=1+1\nb;;f.nii;m.nii;\n")
    batch = Batch(str(path), str(tmp_path / "out"))
    outcomes = dict(batch.run(lambda jobs, logs: [(id, failure_outcome("InputError", "gone", 3)) for id in jobs]))
    assert set(outcomes) == {"a", "b"}
    table = read_rows(tmp_path / "out/table.csv")
    assert [row["age"] for row in table.rows] == ["61", ""] and [row["message_of_list"] for row in table.rows] == ["'=1+1", ""]
    assert all("no such file" in row["message"] for row in table.rows)


@pytest.mark.fault(42)
def test_decimal_commas_are_said(tmp_path):
    path = write(tmp_path / "p.csv", "x;y;z\n1,5;2;3\n")
    with pytest.raises(InputError, match="row 2: x is '1,5', not a number; write it with a point"):
        read_points(path, 3)


@pytest.mark.fault(42)
def test_numbers_in_place_of_a_header(tmp_path):
    path = write(tmp_path / "marks.csv", "60,61,60,1,2,3\n1,2,3,4,5,6\n")
    with pytest.raises(InputError, match="line 1: only numbers, so the file has no header; add the line fixed_x,fixed_y,"):
        read_landmarks(path)


def test_columns_of_ones_own_are_in_the_table_of_a_study(tmp_path):
    path = write(tmp_path / "pairs.csv", "id,age,fixed,moving,seconds\na,61,f.nii,m.nii,5\n")
    (row,) = table_rows(Study({"mine": PairTable(str(path))}, {"svf": []}, {}), [], "cpu", 0, tmp_path)
    assert "no such file" in row["status"] and (row["age"], row["seconds_of_list"]) == ("61", "5")
    write_tables([row], tmp_path)
    assert read_rows(tmp_path / "table.csv").rows[0]["age"] == "61"
