"""Studies: ``python eval.py``, its table and figures."""

import csv
import math
import subprocess
import sys

import numpy as np
import pytest

from eval import figures, tables
from eval.main import Study
from eval.main import rows as studied
from rdmm import ConfigError, io
from rdmm.config import share
from rdmm.data.shapes import Meshes

SMALL = ["study.data.shapes.shape=[48,48]", "study.limit=3", "optimizer.iterations=[4,3,2]", "study.pictures=1"]


def run(tmp_path, *keys):
    command = [sys.executable, "eval.py", *keys, f"hydra.run.dir={tmp_path}"]
    return subprocess.run(command, cwd=share(), capture_output=True, text=True, timeout=300, check=False)


def test_an_experiment_writes_table_and_figures(tmp_path):
    done = run(tmp_path, "experiment=synthetic_predefined", *SMALL)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(r["case"], r["method"]) for r in rows] == [(f"shapes{i:02d}", m) for i in range(3) for m in ("lddmm", "rdmm")]
    assert all(r["status"] == "done" and float(r["region_dice"]) > 0.8 and float(r["folds_percent"]) == 0 for r in rows)
    text = (tmp_path / "table.md").read_text()
    assert "| shapes | rdmm | 3 | 0 |" in text
    assert "energy drift, worst" in text
    for name in ("boxes_shapes.png", "shapes00.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "shapes01.png").exists()


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        (["experiment=synthetic_predefinde"], 1, "synthetic_predefined"),
        (["experimnt=x"], 2, "did you mean 'experiment'"),
        ([], 2, "experiment=synthetic_optimized"),
        (["experiment=lung_predefined", "study.data.ct.root=/nowhere", "study.data.masks.root=/nowhere"], 3, "RDMM_DATA"),
        (["experiment=synthetic_predefined", "similarity_weight=-1"], 2, "must be > 0"),
    ],
)
def test_wrong_studies_say_so(tmp_path, keys, code, message):
    done = run(tmp_path, *keys)
    assert done.returncode == code
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def row(method, status="done", **measures):
    return {"data": "d", "case": "c", "method": method, "status": status, **measures}


def test_a_failure_is_a_row_and_never_a_zero():
    rows = [row("a", dice=0.8, folds_percent=0.0), row("a", dice=0.9, folds_percent=0.5), row("a", "DivergenceError: it blew up")]
    text = tables.markdown(rows)
    assert "| d | a | 3 | 1 | 0.85 ± 0.071 | 0.5 |" in text  # the mean of what there is, the worst of the folds
    assert "it blew up" in text
    assert tables.values(rows, "dice") == [0.8, 0.9]


def test_what_was_not_measured_is_left_out():
    rows = [row("svf", dice=0.8, energy_drift=math.nan), row("rdmm", dice=0.9, energy_drift=0.01)]
    assert tables.values(rows[:1], "energy_drift") == []
    assert tables.markdown(rows).splitlines()[2].endswith("0.8 |  |")


def test_a_study_names_what_it_lacks():
    with pytest.raises(ConfigError, match="nothing to compare"):
        Study({}, {}, {})
    with pytest.raises(ConfigError, match="no data set 'b'"):
        Study({"a": None}, {"m": []}, {"b": []})


def test_boxes_need_three_cases(tmp_path):
    figures.boxes([row("a", dice=x) for x in (0.8, 0.9)], tmp_path)
    assert not list(tmp_path.iterdir())
    figures.boxes([row("a", dice=x) for x in np.linspace(0.7, 0.9, 5)], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["boxes_d.png"]


def test_a_study_of_shapes(tmp_path):
    """Two circles from files, by transport and by a kernel; the same rows, tables and pictures as of images."""
    t = np.arange(40) * (2 * np.pi / 40)
    cells = np.stack([np.arange(40), (np.arange(40) + 1) % 40], 1)
    for name, width in (("fixed", 1.5), ("moving", 1.0)):
        io.write_mesh(tmp_path / f"{name}.vtk", np.stack([width * np.cos(t), np.sin(t), 0 * t], 1), cells)
    data = Meshes(str(tmp_path), {"circles": ["fixed.vtk", "moving.vtk"]})
    methods = {"ot": ["optimizer.iterations=[10]"], "kernel": ["similarity=kernel", "optimizer.iterations=[10]"]}
    rows = list(studied(Study({"circles": data}, methods, {}), ["affine=none"], "cpu", 0, tmp_path))
    assert [(r["case"], r["method"], r["status"]) for r in rows] == [("circles", "ot", "done"), ("circles", "kernel", "done")]
    assert all(r["distance_after_mm"] < 0.5 * r["distance_before_mm"] for r in rows)
    assert (tmp_path / "circles.png").read_bytes().startswith(b"\x89PNG")
    assert "distance mm" in tables.markdown(rows)
