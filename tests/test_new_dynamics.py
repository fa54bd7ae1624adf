"""A dynamics with pre-weights is one class and one YAML file: docs/extending.md's, in a copy of the checkout, from end to end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rdmm import io
from rdmm.config.compose import share
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.io.models import read_model

NAMES = ("rdmm/dynamics/small.py", "conf/dynamics/small.yaml")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout with the two files, and nothing else, added."""
    folder = tmp_path_factory.mktemp("copy") / "checkout"
    for part in ("rdmm", "networks", "eval", "train", "conf"):
        shutil.copytree(share() / part, folder / part, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy2(share() / "train.py", folder)
    text = (share() / "docs" / "extending.md").read_text()
    for name in NAMES:
        (code,) = re.findall(rf"^`{re.escape(name)}`:\n\n```\w+\n(.*?)^```", text, re.M | re.S)
        (folder / name).write_text(code)
    return folder


def launch(checkout: Path, *words: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run a program of the copy, which ends with one of ``codes``; what it wrote on standard output."""
    environment = {"PYTHONPATH": str(checkout), "PATH": "/usr/bin:/bin", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in codes, done.stderr + done.stdout
    return done.stdout


def write_pair(folder: Path) -> list[str]:
    """A fixed and a moving image, as files."""
    pair, _, _ = shapes_pair(1, (32, 32))
    paths = [str(folder / f"{name}.nii.gz") for name in ("fixed", "moving")]
    for path, image in zip(paths, (pair.fixed, pair.moving), strict=True):
        io.write_image(path, image.data, image.grid)
    return paths


def test_registration_and_report(checkout, tmp_path):
    """Momentum and pre-weights are searched for, and sigma(x) is in the files and in the report, which can be made again."""
    out = tmp_path / "out"
    keys = ["dynamics=small", "penalty=omt", "affine=none", "similarity=ssd", "similarity_weight=10", "optimizer.iterations=[10,10,10]"]
    launch(checkout, "-m", "rdmm", "register", *write_pair(tmp_path), "-o", f"{out}/", *keys, "output.times=[0,1]")
    ic = load_file(out / "initial_conditions.safetensors")
    assert float(ic["weights"].std(dim=(2, 3)).max()) > 0
    assert torch.allclose(ic["weights"].square().sum(1), torch.ones_like(ic["weights"][:, 0]), atol=1e-4)
    assert {"Sigma0.nii.gz", "Sigma1.nii.gz", "t0_Sigma.nii.gz", "t1_Weight1.nii.gz"} <= {p.name for p in out.iterdir()}
    run = json.loads((out / "run.json").read_text())
    last = [row for row in run["history"] if row["level"] == run["history"][-1]["level"]]  # other levels compare smoother images
    assert last[-1]["total"] < last[0]["total"]
    assert run["history"][-1]["weights"] > 0
    assert "energy_drift" not in run["metrics"]
    (out / "report.html").unlink()
    launch(checkout, "-m", "rdmm", "report", f"{out}/")
    assert "sigma(x) in mm" in (out / "report.html").read_text()


def test_training(checkout, tmp_path):
    """Two steps of a network that predicts momentum and pre-weights; the model file registers."""
    small = ["data=shapes", "shape=[32,32]", "backbone.features=[4,4,4,4,4]", "data.limit=1", "table.limit=0", "threads=1"]
    trainer = ["trainer.batch=1", "trainer.max_steps=2", "trainer.warmup=1", "trainer.validate_every=2", "trainer.picture_every=1"]
    keys = ["dynamics=small", "penalty=omt", "affine=none", *small, *trainer]
    launch(checkout, "train.py", *keys, f"hydra.run.dir={tmp_path}")
    path = tmp_path / "small" / "best.safetensors"
    model = read_model(path)
    assert model.settings["register"]["dynamics"]["_target_"] == "rdmm.dynamics.small.Small"
    assert any(name.startswith("predictor.weights.") for name in model.tensors)
    out = tmp_path / "out"
    words = ["-m", "rdmm", "register", *write_pair(tmp_path), "-o", f"{out}/", "--weights", str(path), "affine=none"]
    launch(checkout, *words, codes=(0, 5))  # after two steps of training a model moves nothing, and the verdict says so
    assert (out / "Sigma0.nii.gz").exists()
