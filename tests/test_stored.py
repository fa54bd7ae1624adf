"""Files that an earlier version wrote, before its modules became packages: they still load, report, resume and count as finished.

tests/stored/make.py says how they were made.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import targets

from networks.model import load
from rdmm import ConfigError, io
from rdmm.cli import main
from rdmm.config.build import resolve
from rdmm.config.compose import compose
from rdmm.config.location import bundled_model, share
from rdmm.config.renamed import RENAMED, current
from rdmm.config.trust import conf_targets
from rdmm.io.models import read_model
from train.checkpoint import LAST, STATE, flatten
from train.parallel import World
from train.plan import train

STORED = Path(__file__).parent / "stored"
EARLIER = (STORED / "targets.txt").read_text().split()


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A copy of the stored files as the current folder: paths in them are relative to it."""
    shutil.copytree(STORED, tmp_path / "stored")
    monkeypatch.chdir(tmp_path / "stored")
    return tmp_path / "stored"


def rdmm(*arguments):
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def earlier_names(text):
    return {name for name in RENAMED if re.search(rf"\b{re.escape(name)}\b", text)}


@pytest.mark.parametrize("name", EARLIER)
def test_every_earlier_target_leads_to_an_object(name):
    assert callable(resolve(name, ""))


def test_renamed_targets_lead_to_todays_names():
    assert set(RENAMED) <= set(EARLIER)
    assert not set(RENAMED) & set(RENAMED.values())  # one step leads to the name of today
    for name in RENAMED.values():
        assert callable(resolve(name, ""))
    named = {t for path in (share() / "conf").rglob("*.yaml") for t in targets(yaml.safe_load(path.read_text()))}
    assert named <= conf_targets() and not named & set(RENAMED)
    assert current({"a": [{"_target_": "rdmm.problem.Problem"}]}) == {"a": [{"_target_": "rdmm.optim.Problem"}]}


@pytest.mark.parametrize("unit", ["domain", "mm"])
def test_keys_added_since_have_the_value_that_was_in_effect(unit):
    """A sigma of the weights was in the smoother's unit, in nested settings and in those with dotted keys."""
    old = {"dynamics": {"_target_": "rdmm.dynamics.RDMM", "smoother": {"unit": unit}, "weight_sigma": 0.05}}
    assert current(old)["dynamics"]["weight_unit"] == unit
    assert current(flatten(old)) == flatten(current(old))
    assert current(current(old)) == current(old)


def test_the_bundled_model_names_earlier_classes_and_loads():
    assert earlier_names(json.dumps(read_model(bundled_model()).settings))
    assert load(None).predictor is not None


def test_a_stored_model_registers(stored):
    assert earlier_names(json.dumps(read_model("model.safetensors").settings)) >= {
        "rdmm.smoother.MultiGaussian",
        "rdmm.intensity.Normalise",
    }
    rdmm("register", "fixed.nii.gz", "moving.nii.gz", "-o", "learned/", "--weights", "model.safetensors", "--quiet", "affine=none")
    run = json.loads(Path("learned/run.json").read_text())
    assert run["config"]["dynamics"]["smoother"]["_target_"] == "rdmm.regularizer.MultiGaussian"
    assert not earlier_names(json.dumps(run))


def test_a_stored_run_is_reported(stored):
    run = stored / "batch/pair/run.json"
    before = json.loads(run.read_text())
    assert len(earlier_names(run.read_text())) > 5
    rdmm("report", "batch/pair", "--overwrite")
    page, after = (stored / "batch/pair/report.html").read_text(), json.loads(run.read_text())
    assert "rdmm.regularizer.MultiGaussian" in page and page.count("data:image") > 3
    assert {k: v for k, v in after["outputs"].items() if k != "report.html"} == {
        k: v for k, v in before["outputs"].items() if k != "report.html"
    }
    assert after["metrics"] == before["metrics"] and after["config"] == current(before["config"])
    for name, checksum in after["outputs"].items():
        assert io.sha256(stored / "batch/pair" / name) == checksum


PAIR = ["dynamics=rdmm", "smoother.sigmas=[0.05,0.1]", "smoother.weights=[0.4,0.6]", "affine=none"]
PAIR += ["optimizer.scales=[1]", "optimizer.iterations=[2]"]
THEN = ["smoother.boundary=zero", "smoother.compressibility=1", "similarity_weight=0.015", "optimizer.voxel_of_sigma=0.845", "barrier=10"]
"""Defaults of the time of the stored run, with which it would have to be typed today."""


def test_a_stored_batch_skips_the_finished_pair(stored):
    run = stored / "batch/pair/run.json"
    run.write_text(run.read_text().replace("'optimizer.iterations=[2]'", " ".join(["'optimizer.iterations=[2]'", *THEN])))
    files = {p: p.stat().st_mtime_ns for p in (stored / "batch/pair").iterdir()}
    output = rdmm("batch", "pairs.csv", "-o", "batch", "--resume", *PAIR, *THEN)
    assert "1 of 1 pairs done" in output
    assert {p: p.stat().st_mtime_ns for p in (stored / "batch/pair").iterdir()} == files
    rdmm("batch", "pairs.csv", "-o", "batch", "--resume", *PAIR, *THEN, "optimizer.iterations=[1]")  # other settings: done anew
    assert {p: p.stat().st_mtime_ns for p in (stored / "batch/pair").iterdir()} != files


def test_a_stored_training_resumes(stored):
    keys = (stored / "training.txt").read_text().split()
    state = torch.load(stored / STATE, weights_only=True)
    assert state["progress"]["step"] == 3 and earlier_names(state["identity"])
    (stored / "out/rdmm").mkdir(parents=True)
    shutil.copy(stored / STATE, stored / "out/rdmm")
    with pytest.raises(ConfigError, match=r"was trained with loss.folding=20.0, not 1"):
        resume(stored / "out", [*keys, "loss.folding=1"])
    resume(stored / "out", keys)
    assert read_model(stored / "out/rdmm" / LAST).facts["step"] == 4
    resume(stored / "whole", keys)  # nothing to go on from: all four steps
    a, b = (read_model(stored / out / "rdmm" / LAST).tensors for out in ("out", "whole"))
    # the first three steps were taken when maps were interpolated linearly between grids; Adam's step is .001
    assert all(torch.allclose(a[k], b[k], atol=5e-3) for k in a)


def resume(out, keys):
    keys = [*keys, "resume=true"]
    train(compose(keys, "train"), keys, out, World())
