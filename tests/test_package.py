"""What a user installs: the wheel's contents, and a registration from it in a clean environment."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from test_faults_input import make_picture, save_nifti

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


def environment_without_rdmm(folder: Path) -> Path:
    """The interpreter of a new environment, which borrows everything but rdmm from this one, so that nothing is fetched."""
    venv.create(folder / "env", with_pip=True)
    lent = folder / "lent"
    lent.mkdir()
    for site in {p for p in map(Path, sys.path) if p.name == "site-packages"}:
        for item in site.iterdir():
            if "rdmm" not in item.name.lower() and not (lent / item.name).exists():
                (lent / item.name).symlink_to(item)
    site = next((folder / "env/lib").glob("python*/site-packages"))
    (site / "lent.pth").write_text(str(lent))
    for item in site.glob("setuptools*"):  # older than the one that is lent
        shutil.rmtree(item)
    return folder / "env/bin/python"


@pytest.mark.slow
def test_registration_from_the_wheel(wheel, tmp_path):
    """In an environment of its own; what rdmm needs is lent by this one."""
    python = environment_without_rdmm(tmp_path)
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True, env=environment)
    fixed, moving = (save_nifti(tmp_path / f"{name}.nii.gz", make_picture(k, (20, 22))) for k, name in enumerate("fm"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [tmp_path / "env/bin/rdmm", "register", fixed, moving, "-o", "out/", "optimizer.iterations=[3,3,3]", "affine=none"]
    command += ["similarity=ssd"]  # few kernels to compile: this installation has none yet
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    where = [python, "-c", "import rdmm; print(rdmm.__file__)"]
    assert str(site) in subprocess.run(where, cwd=elsewhere, capture_output=True, text=True, check=True, env=environment).stdout
    assert (elsewhere / "out/1Warp.nii.gz").exists()


@pytest.mark.slow
def test_a_checkout_beside_a_script_does_not_hide_the_package(tmp_path):
    """A folder called rdmm next to the user's script is no package; the editable install must win over it, in workers too."""
    checkout = tmp_path / "rdmm"
    for part in ("rdmm", "networks", "conf", "train", "eval"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "train.py", "eval.py"):
        shutil.copy2(ROOT / name, checkout)
    (checkout / "runs").mkdir()  # of train.py: must not stand for a module of rdmm
    python = environment_without_rdmm(tmp_path)
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-e", checkout]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(install, check=True, env=environment)
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "import rdmm\n"
        "def work(n):\n"
        "    import rdmm.registration.entry\n"
        "    return rdmm.Grid.unit((n, n)).shape\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(rdmm.__file__, pool.map(work, [8]))\n"
    )
    for cwd in (tmp_path, checkout):
        done = subprocess.run([python, script], cwd=cwd, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(checkout / "rdmm/__init__.py"), "[(8,", "8)]"]
