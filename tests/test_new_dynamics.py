"""A dynamics with pre-weights is one class and one YAML file: docs/extending.md's, in a package of one's own, from end to end."""

from __future__ import annotations

import json
from unittest.mock import ANY

import pytest
import torch
from own_package import own_package, run_here, write_pair
from safetensors.torch import load_file

from rdmm.io.models import read_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_package(tmp_path_factory.mktemp("elsewhere")) as here:
        write_pair(here / "fixed.nii.gz", here / "moving.nii.gz", size=32)
        yield here


def test_registration_and_report(folder):
    """Momentum and pre-weights are searched for, and sigma(x) is in the files and in the report, which can be made again."""
    out = folder / "out"
    keys = ["dynamics=small", "penalty=omt", "affine=none", "similarity=ssd", "similarity_weight=10", "optimizer.iterations=[10,10,10]"]
    assert run_here("rdmm register fixed.nii.gz moving.nii.gz -o out/ --allow my_package", *keys, "output.times=[0,1]") == (0, ANY)
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
    assert run_here("rdmm report out/ --allow my_package") == (0, ANY)
    assert "sigma(x) in mm" in (out / "report.html").read_text()


def test_training(folder):
    """Two steps of a network that predicts momentum and pre-weights; the model file registers."""
    small = ["data=shapes", "shape=[32,32]", "backbone.features=[4,4,4,4,4]", "data.limit=1", "table.limit=0", "threads=1"]
    trainer = ["trainer.batch=1", "trainer.max_steps=2", "trainer.warmup=1", "trainer.validate_every=2", "trainer.picture_every=1"]
    keys = ["dynamics=small", "penalty=omt", "affine=none", *small, *trainer]
    assert run_here("python train.py --allow my_package hydra.run.dir=run", *keys) == (0, "")
    path = folder / "run" / "small" / "best.safetensors"
    model = read_model(path)
    assert model.settings["register"]["dynamics"]["_target_"] == "my_package.small.Small"
    assert any(name.startswith("predictor.weights.") for name in model.tensors)
    code, said = run_here(f"rdmm register fixed.nii.gz moving.nii.gz -o learned/ --allow my_package --weights {path} affine=none")
    assert code in (0, 5), said  # after two steps of training a model moves nothing, and the verdict says so
    assert (folder / "learned" / "Sigma0.nii.gz").exists()
