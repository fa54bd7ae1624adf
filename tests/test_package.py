"""What a user installs: the wheel's contents, and a registration from it in a clean environment."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from test_faults_input import picture, saved

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_installs_one_name_with_its_settings(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"rdmm"}
    shipped = {n.removeprefix("rdmm/_share/") for n in names if n.endswith(".yaml")}
    assert shipped == {str(p.relative_to(ROOT)) for p in (ROOT / "conf").rglob("*.yaml")}
    assert {"rdmm/py.typed", "rdmm/_share/networks/model.py"} <= set(names)


@pytest.mark.slow
def test_registration_from_the_wheel(wheel, tmp_path):
    """In an environment of its own; what rdmm needs is lent by this one, so that nothing is fetched."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    lent = tmp_path / "lent"
    lent.mkdir()
    for folder in {p for p in map(Path, sys.path) if p.name == "site-packages"}:
        for item in folder.iterdir():
            if "rdmm" not in item.name.lower() and not (lent / item.name).exists():
                (lent / item.name).symlink_to(item)
    (site / "lent.pth").write_text(str(lent))
    fixed, moving = saved(tmp_path / "f.nii.gz", picture()), saved(tmp_path / "m.nii.gz", picture(1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [tmp_path / "env/bin/rdmm", "register", fixed, moving, "-o", "out/", "optimizer.iterations=[3,3,3]", "affine=none"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    where = [python, "-c", "import rdmm; print(rdmm.__file__)"]
    assert str(site) in subprocess.run(where, cwd=elsewhere, capture_output=True, text=True, check=True, env=environment).stdout
    assert (elsewhere / "out/1Warp.nii.gz").exists()
