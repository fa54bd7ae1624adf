import json
import os
import re
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from test_faults_input import make_deformed_picture, make_picture, save_nifti

from rdmm.cli import main
from rdmm.workflows import inspect

FAST = ["optimizer.scales=[0.5,1.0]", "optimizer.iterations=[10,5]", "affine.iterations=10"]
COMMANDS = ["register", "apply", "points", "invert", "jacobian", "evaluate", "info", "demo"]


@pytest.fixture
def cli(capsys):
    """Run a command. Returns (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main.main(args=[str(a) for a in arguments], prog_name="rdmm")
        out = capsys.readouterr()
        return caught.value.code or 0, out.out, out.err

    return run


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a registered pair, with the results in out/."""
    folder = tmp_path_factory.mktemp("study")
    save_nifti(folder / "f.nii.gz", make_picture())
    save_nifti(folder / "m.nii.gz", make_deformed_picture())
    for name, array in (("fl", make_picture()), ("ml", make_deformed_picture())):
        save_nifti(folder / f"{name}.nii.gz", (array > 0.4).astype(np.int16) + (array > 0.7))
    (folder / "l.csv").write_text("fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z\n20,20,16,20,20,16\n12,24,18,12,24,18\n")
    command = ["register", folder / "f.nii.gz", folder / "m.nii.gz", "-o", f"{folder}/out/", "--fixed-labels", folder / "fl.nii.gz"]
    command += ["--moving-labels", folder / "ml.nii.gz", "--landmarks", folder / "l.csv", "--quiet", *FAST]
    with pytest.raises(SystemExit) as caught:
        main.main(args=[str(c) for c in command], prog_name="rdmm")
    assert not caught.value.code
    return folder


def test_an_unexpected_error_is_one_line_too(cli, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("one\n\n    two\nthree")

    monkeypatch.setattr(inspect, "info", fail)
    assert cli("info", "x") == (1, "", "rdmm: unexpected RuntimeError: one two three (--debug shows where)\n")


@pytest.mark.fault(70)
def test_help_and_version(cli):
    code, _, err = cli()
    assert code == 2
    assert "Examples" in err
    assert cli("--version")[0] == 0
    for flag in ("-h", "--help"):
        assert cli(flag)[0] == 0
    for command in COMMANDS:
        code, out, _ = cli(command, "--help")
        assert code == 0
        assert len(re.findall(r"^\s+rdmm ", out, re.M)) >= 3  # three examples


def test_help_is_immediate():
    heavy = "{'torch', 'numba', 'hydra', 'nibabel', 'matplotlib'}"
    code = (
        f"import sys; from rdmm.cli import main\ntry: main.main(['--help'])\nexcept SystemExit: print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("[]")


def test_register(study):
    run = json.loads((study / "out/run.json").read_text())
    assert run["metrics"]["dice"] > run["metrics"]["dice_before"]
    assert "tre_mm" in run["metrics"]
    assert run["inputs"]["landmarks"]["sha256"]
    page = (study / "out/report.html").read_text()
    assert "<img" in page
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)  # self-contained


def test_apply_reproduces_the_warped_image(cli, study):
    out = study / "again.nii.gz"
    names = ["-t", study / "out/1Warp.nii.gz", "-t", study / "out/0GenericAffine.mat"]
    assert cli("apply", study / "m.nii.gz", *names, "-r", study / "f.nii.gz", "-o", out)[0] == 0
    a, b = (nib.load(p).get_fdata() for p in (out, study / "out/Warped.nii.gz"))
    assert np.abs(a - b).max() < 2e-3
    labels = study / "labels.nii.gz"
    assert cli("apply", study / "ml.nii.gz", "--labels", *names, "-r", study / "f.nii.gz", "-o", labels)[0] == 0
    assert np.array_equal(nib.load(labels).get_fdata(), nib.load(study / "out/WarpedLabels.nii.gz").get_fdata())
    code, _, err = cli("apply", study / "m.nii.gz", *names, "-r", study / "f.nii.gz", "-o", out)
    assert code == 3
    assert "--overwrite" in err


def test_points_there_and_back(cli, study):
    (study / "p.csv").write_text("x,y,z\n20,20,16\n15,22,20\n")
    there = ["-t", study / "out/1Warp.nii.gz", "-t", study / "out/0GenericAffine.mat"]
    back = ["-t", f"[{study / 'out/0GenericAffine.mat'},1]", "-t", study / "out/1InverseWarp.nii.gz"]
    assert cli("points", study / "p.csv", *there, "-o", study / "q.csv", "--overwrite")[0] == 0
    assert cli("points", study / "q.csv", *back, "-o", study / "r.csv", "--overwrite")[0] == 0
    p, r = (np.loadtxt(study / f"{n}.csv", delimiter=",", skiprows=1) for n in "pr")
    assert np.abs(p - r).max() < 0.3  # mm, voxels of 2


def test_invert_jacobian_evaluate_info(cli, study):
    assert cli("invert", study / "out/1Warp.nii.gz", "-o", study / "inv.nii.gz")[0] == 0
    a, b = (nib.load(p).get_fdata() for p in (study / "inv.nii.gz", study / "out/1InverseWarp.nii.gz"))
    assert np.abs(a - b)[3:-3, 3:-3, 3:-3].mean() < 0.1  # mm
    code, out, _ = cli("jacobian", study / "out/1Warp.nii.gz", "-o", study / "jac.nii.gz", "--json")
    assert code == 0
    assert json.loads(out)["folds_percent"] == 0
    assert nib.load(study / "jac.nii.gz").get_fdata().mean() == pytest.approx(1, abs=0.1)
    names = ["-t", study / "out/1Warp.nii.gz", "-t", study / "out/0GenericAffine.mat"]
    command = ["evaluate", "--fixed-labels", study / "fl.nii.gz", "--moving-labels", study / "ml.nii.gz", *names]
    code, out, _ = cli(*command, "--landmarks", study / "l.csv", "--json")
    run = json.loads((study / "out/run.json").read_text())
    assert json.loads(out)["dice"] == pytest.approx(run["metrics"]["dice"], abs=2e-3)
    assert json.loads(out)["tre_mm"] == pytest.approx(run["metrics"]["tre_mm"], abs=1e-2)
    kinds = {
        "f.nii.gz": "image",
        "out/1Warp.nii.gz": "warp",
        "out/0GenericAffine.mat": "affine",
        "out/run.json": "run",
        "out/initial_conditions.safetensors": "tensors",
    }
    for name, kind in kinds.items():
        code, out, _ = cli("info", study / name, "--json")
        assert code == 0
        assert json.loads(out)["kind"].startswith(kind)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["register", "{f}", "-o", "x_"], 2, "two images"),
        (["register", "{f}", "{m}"], 2, "--out"),
        (["register", "{f}", "{f}x", "-o", "{d}/x_"], 3, "no such file"),
        (["register", "{f}", "{m}", "-o", "{d}/none/x_"], 3, "no such folder"),
        (["register", "{f}", "{m}", "-o", "{d}/out/"], 3, "--overwrite"),
        (["register", "{f}", "{m}", "-o", "{d}/x_", "dynamic=svf"], 2, "dynamics"),
        (["register", "{f}", "{m}", "-o", "{d}/x_", "similarity_weight=abc"], 2, "similarity_weight must be a number; got 'abc'"),
        (["register", "{f}", "{m}", "-o", "{d}/x_", "--device", "cudaa"], 2, "--device"),
        (["register", "{f}", "{m}", "-o", "{d}/x_", "--device", "meta"], 2, "cpu or cuda"),
        (["register", "{f}", "{m}", "-o", "{d}/x_", "--threads", "0"], 2, "--threads"),
        (["register", "{f}", "{m}", "-o", "{d}/x_", "initializer=regions", "dynamics=rdmm"], 2, "--regions"),
        (["register", "{f}", "{m}", "-o", "{d}/x_", "--fixed-mask", "{fl}", "--landmarks", "{fl}"], 3, "UTF-8"),
        (["registr"], 2, "No such command"),
        (["info", "{d}"], 3, "is a directory"),
        (["invert", "{f}", "-o", "{d}/x.nii.gz"], 3, "no displacement field"),
        (["evaluate", "-t", "{d}/out/1Warp.nii.gz", "--fixed-labels", "{fl}"], 2, "both"),
        (["demo", "shape", "-o", "{d}/demo"], 3, "shapes"),
    ],
)  # fmt: skip
@pytest.mark.fault(67, 69)
def test_faults_are_one_line_and_a_code(cli, study, arguments, code, message):
    names = {"f": study / "f.nii.gz", "m": study / "m.nii.gz", "fl": study / "fl.nii.gz", "d": study}
    before = sorted(p.name for p in study.rglob("*"))
    got, out, err = cli(*[a.format(**names) for a in arguments])
    assert got == code
    assert message in err
    assert "Traceback" not in err
    assert not out
    assert sorted(p.name for p in study.rglob("*")) == before


@pytest.mark.fault(71)
def test_dry_run_and_names_with_spaces_and_accents(cli, study, tmp_path):
    folder = tmp_path / "dir é"
    folder.mkdir()
    fixed = save_nifti(folder / "x=1 y.nii.gz", make_picture())
    code, out, _ = cli("register", "-f", fixed, "-m", study / "m.nii.gz", "-o", f"{folder}/r é_", "--dry-run", "--json", "dynamics=lddmm")
    assert code == 0
    assert json.loads(out)["config"]["dynamics"]["_target_"].endswith("LDDMM")
    assert [p.name for p in folder.iterdir()] == ["x=1 y.nii.gz"]
    assert cli("register", fixed, study / "m.nii.gz", "-o", f"{folder}/r é_", "--quiet", *FAST)[0] == 0
    assert (folder / "r é_1Warp.nii.gz").exists()


@pytest.mark.fault(85)
def test_names_are_escaped_in_the_report(cli, study, tmp_path):
    fixed = save_nifti(tmp_path / "<script>alert(1)<script>.nii.gz", make_picture())
    assert cli("register", fixed, study / "m.nii.gz", "-o", f"{tmp_path}/", "--quiet", *FAST)[0] == 0
    assert "<script>" not in (tmp_path / "report.html").read_text()


@pytest.mark.fault(58)
def test_max_folding(cli, study, monkeypatch, tmp_path):
    from rdmm import metrics

    monkeypatch.setattr(metrics, "non_diffeomorphic_volume", lambda u, grid: {"folded_cells_percent": 3.0, "ndv_percent": 1.0})
    code, _, err = cli("register", study / "f.nii.gz", study / "m.nii.gz", "-o", f"{tmp_path}/", "--max-folding", "1", *FAST)
    assert code == 5
    assert "3 % of the cells fold" in err
    assert (tmp_path / "run.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.fault(48, 49)
def test_interruption_writes_the_best_result(study, tmp_path, number, code):
    command = [sys.executable, "-c", "from rdmm.cli import main; main.main()", "register", str(study / "f.nii.gz"), str(study / "m.nii.gz")]
    command += ["-o", f"{tmp_path}/", "optimizer.tolerance=0", "optimizer.scales=[1.0]", "optimizer.iterations=[100000]", "dynamics=lddmm"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("affine level"):
            break
    time.sleep(1.0)
    process.send_signal(number)
    begin = time.perf_counter()
    assert process.wait(60) == code
    assert time.perf_counter() - begin < 10
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    assert np.isfinite(nib.load(tmp_path / "1Warp.nii.gz").get_fdata()).all()


def test_demo(cli, tmp_path):
    code, out, err = cli("demo", "-o", f"{tmp_path}/demo/", "--json")
    assert code == 0
    run = json.loads(out)
    assert run["metrics"]["dice"] > 0.9
    assert run["metrics"]["folds_percent"] == 0
    assert f"{tmp_path}/demo/report.html" in err
    assert (tmp_path / "demo/Sigma1.nii.gz").exists()
