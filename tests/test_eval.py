"""Studies: ``python eval.py``, its table and figures."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from eval import figures, tables
from eval.main import main, write_index
from eval.study import External, Study, table_rows
from rdmm import ConfigError, Image, InputError, Pair, io
from rdmm.config.compose import share
from rdmm.data.inputs import Inputs
from rdmm.data.studies.meshes import Meshes
from rdmm.data.studies.pair_table import PairTable
from rdmm.data.synthetic.scenes import shapes_pair

SMALL = ["study.data.shapes.shape=[48,48]", "study.limit=3", "optimizer.iterations=[4,3,2]", "study.pictures=1", "study.style.dpi=40"]


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
    for name in ("boxes_shapes", "shapes00"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert not (tmp_path / "shapes01.png").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["experiment=synthetic_predefinde"], "synthetic_predefined"),
        (["study=5"], "study must keep its entries"),
        (["experimnt=x"], "did you mean 'experiment'"),
    ],
)
def test_unknown_settings_end_before_hydra(refused, keys, message):
    code, said = refused(main, *keys)
    assert code == 2 and message in said


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        (["experiment=synthetic_predefined", "seed=a"], 2, "seed must be"),
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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["boxes_d.pdf", "boxes_d.png"]


def test_a_study_of_shapes(tmp_path):
    """Two circles from files, by transport and by a kernel; the same rows, tables and pictures as of images."""
    t = np.arange(40) * (2 * np.pi / 40)
    cells = np.stack([np.arange(40), (np.arange(40) + 1) % 40], 1)
    for name, width in (("fixed", 1.5), ("moving", 1.0)):
        io.write_mesh(tmp_path / f"{name}.vtk", np.stack([width * np.cos(t), np.sin(t), 0 * t], 1), cells)
    data = Meshes(str(tmp_path), {"circles": ["fixed.vtk", "moving.vtk"]})
    methods = {"ot": ["optimizer.iterations=[10]"], "kernel": ["similarity=kernel", "optimizer.iterations=[10]"]}
    study = Study({"circles": data}, methods, {}, style={"formats": ["png"], "dpi": 40})
    rows = list(table_rows(study, ["affine=none"], "cpu", 0, tmp_path))
    assert [(r["case"], r["method"], r["status"]) for r in rows] == [("circles", "ot", "done"), ("circles", "kernel", "done")]
    assert all(r["distance_after_mm"] < 0.5 * r["distance_before_mm"] for r in rows)
    assert (tmp_path / "circles.png").read_bytes().startswith(b"\x89PNG")
    assert "distance mm" in tables.markdown(rows)


def test_warnings_are_told_beside_the_table(tmp_path):
    """Of the images, and of the registration: in the row, and under the table."""
    pair, _, _ = shapes_pair(0, (32, 32))
    both = Image((pair.fixed.data + pair.fixed.data.flip(2, 3)) / 2, pair.fixed.grid)

    class Symmetric:
        def cases(self):
            return {"a": lambda: Inputs(Pair(both, both), warnings=("odd",))}

    study = Study({"one": Symmetric()}, {"affine": ["optimizer=none"]}, {}, style={"formats": ["png"], "dpi": 40})
    rows = list(table_rows(study, [], "cpu", 0, tmp_path))
    assert rows[0]["status"] == "done" and rows[0]["warnings"].startswith("odd; affine: rotated by another 180 degrees")
    assert "- one a, affine: warning: odd; affine" in tables.markdown(rows)
    tables.write_tables(rows, tmp_path)
    assert "odd; affine" in (tmp_path / "table.csv").read_text()
    write_index(rows, tmp_path)
    assert "odd; affine" in (tmp_path / "index.html").read_text()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Six pairs in a list, the last of which cannot be read; warps of another tool for all but the second."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["id,fixed,moving,fixed_labels,moving_labels"]
    for k in range(6):
        pair, a, b = shapes_pair(k, (40, 36))
        files = {"f": (pair.fixed.data, False), "m": (pair.moving.data, False), "fl": (a, True), "ml": (b, True)}
        for name, (x, whole) in files.items():
            io.write_image(folder / f"{name}{k}.nii.gz", x, pair.fixed.grid, integer=whole)
        lines.append(f"c{k},f{k}.nii.gz,m{k}.nii.gz,fl{k}.nii.gz,ml{k}.nii.gz")
        if k != 1:
            io.write_warp(folder / f"c{k}_warp.nii.gz", torch.zeros(1, 2, 40, 36), pair.fixed.grid)
    (folder / "f5.nii.gz").write_bytes(b"cut")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder


def test_a_list_of_ones_own_against_another_tool(pairs, tmp_path):
    """experiment=pairs: every table, tests, the list, the submission; failures are rows, exit code 4."""
    methods = ["~study.methods.affine", "~study.methods.lddmm", "~study.methods.rdmm"]
    (pairs / "seconds.txt").write_text("12.5\n")
    methods += [f"+study.methods.other={{warps: ['{pairs}/{{case}}_warp.nii.gz'], seconds: '{pairs}/seconds.txt'}}"]
    keys = [f"study.data.pairs.path={pairs}/pairs.csv", *methods, "optimizer.iterations=[10,6,3]"]
    more = ["study.baseline=other", "study.submission=npz", "study.pictures=1", "study.style.dpi=40"]
    done = run(tmp_path, "experiment=pairs", *keys, *more)
    assert done.returncode == 4, done.stderr + done.stdout
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == 12
    failed = {(r["case"], r["method"]) for r in rows if r["status"] != "done"}
    assert failed == {("c1", "other"), ("c5", "svf"), ("c5", "other")}
    other = [r for r in rows if r["method"] == "other" and r["status"] == "done"]
    assert all(float(r["folds_percent"]) == 0 and r["inverse_consistency_mm"] == "" and float(r["seconds"]) == 12.5 for r in other)
    ours = next(r for r in rows if r["method"] == "svf")
    assert float(ours["dice"]) > float(other[0]["dice"]) == float(other[0]["dice_before"])
    assert 0 < float(ours["hd95_mm"]) < 40
    assert float(ours["peak_memory_mb"]) > 50
    whole = json.loads((tmp_path / "table.json").read_text())
    svf = next(m for m in whole["methods"] if m["method"] == "svf")
    assert (svf["n"], svf["failed"], svf["measures"]["dice"]["n_valid"]) == (6, 1, 5)
    assert svf["measures"]["dice"]["min"] <= svf["measures"]["dice"]["robustness_30"] <= svf["measures"]["dice"]["max"]
    assert "c1_warp.nii.gz: no such file" in (tmp_path / "table.md").read_text()
    assert r"\toprule" in (tmp_path / "table.tex").read_text()
    page = (tmp_path / "index.html").read_text()
    assert page.index(">c5<") < page.index(">c2<") and 'href="c0.png"' in page
    assert page.count("data:image/jpeg") == 9 and "thumbnail" not in (tmp_path / "table.csv").read_text()
    assert np.load(tmp_path / "submission/svf/disp_c0.npz")["arr_0"].shape == (40, 36, 2)


def test_signed_ranks_against_a_baseline():
    """scipy's test of the paired differences, Holm's correction over the methods."""
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 12)) * 0.01 + np.array([[0.8], [0.85], [0.801]])
    rows = [{**row(m, dice=float(x)), "case": f"c{i}"} for m, numbers in (("a", a), ("b", b), ("c", c)) for i, x in enumerate(numbers)]
    found = {t["method"]: t for t in tables.compare_with_baseline(rows, "a")}
    assert found["b"]["p"] == pytest.approx(wilcoxon(b - a).pvalue) and found["b"]["p_holm"] == pytest.approx(2 * found["b"]["p"])
    assert found["c"]["p_holm"] == pytest.approx(max(found["c"]["p"], found["b"]["p_holm"]))
    assert "| d | dice | b | 12 | +0.0" in tables.markdown(rows, "a")
    assert tables.compare_with_baseline(rows[:4] + rows[12:16], "a") == []  # too few
    text = tables.latex([{**r, "method": r["method"] + "_x%"} for r in rows], "a_x%")
    assert r"b\_x\% & \textbf{" in text and text.count(r"\textbf") == 1
    assert r"\textbf" not in tables.latex(rows)  # no test says that one is better


def test_thirty_per_cent():
    rows = [{**row("a", dice=k / 10, tre_mm=float(k)), "case": f"c{k}"} for k in range(11)]
    assert tables.robustness_30(rows, "dice") == pytest.approx(0.3)
    assert tables.robustness_30(rows, "tre_mm") == pytest.approx(7)
    assert "| Dice, 30 % |" in tables.markdown(rows)


def test_the_time_of_another_tool_must_be_a_number(pairs):
    inputs = PairTable(str(pairs / "pairs.csv")).cases()["c0"]()
    warps = [f"{pairs}/{{case}}_warp.nii.gz"]
    assert math.isnan(External(warps)("c0", inputs).result.seconds["total"])
    with pytest.raises(InputError, match=r"c0.csv: cannot be read as a number of seconds .*leave out 'seconds'"):
        External(warps, seconds=f"{pairs}/{{case}}.csv")("c0", inputs)
    for text in ("nan", "-1", "inf"):
        (pairs / "wrong.txt").write_text(text)
        with pytest.raises(InputError, match=r"wrong.txt: .* is no number of seconds"):
            External(warps, seconds=f"{pairs}/wrong.txt")("c0", inputs)


def test_wrong_methods_say_so():
    with pytest.raises(ConfigError, match="did you mean 'warps'"):
        Study({"a": None}, {"m": {"warp": ["x"]}}, {})
    with pytest.raises(ConfigError, match="a list of files"):
        Study({"a": None}, {"m": {"warps": "x"}}, {})
    with pytest.raises(ConfigError, match="did you mean 'svf'"):
        Study({"a": None}, {"svf": []}, {}, baseline="svv")
