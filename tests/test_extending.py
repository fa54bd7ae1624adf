"""docs/extending.md as printed, from a folder outside the checkout: every file that it shows, and every command."""

from __future__ import annotations

import json

import pytest
import torch
from own_package import COMMANDS, own_package, run_here, write_pair

from rdmm.config.build import build
from rdmm.config.compose import compose
from rdmm.config.plugins import allowing
from rdmm.io.models import read_model
from rdmm.types import ConfigError

QUICK = ["optimizer.scales=[1]", "optimizer.iterations=[1]", "affine=none"]
SMALL = ["shape=[16,16]", "table.limit=0", "threads=1", "data.shares=[.4,.3,.3]", "data.limit=1", "trainer.batch=1", "trainer.warmup=1"]
SMALL += ["trainer.checkpoint_every=1", "trainer.log_every=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_package(tmp_path_factory.mktemp("elsewhere")) as here:
        write_pair(here / "fixed.nii.gz", here / "moving.nii.gz")
        for k, subject in enumerate("abcdef"):
            write_pair(here / "data" / subject / "baseline.nii.gz", here / "data" / subject / "followup.nii.gz", k)
        yield here


def command(start: str) -> str:
    (found,) = [c for c in COMMANDS if c.startswith(start)]
    return found


def test_every_command_is_tried():
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("key", ["similarity=charbonnier", "dynamics=small"])
def test_registrations(folder, key):
    (printed,) = [c for c in COMMANDS if key in c]
    code, said = run_here(printed, *QUICK, "--no-report", "--overwrite")
    assert code in (0, 5), said
    group = key.partition("=")[0]
    record = json.loads((folder / ("out" if group == "similarity" else "small") / "run.json").read_text())
    assert record["config"][group]["_target_"].startswith("my_package.")
    assert run_here(printed.replace("--allow my_package", ""), *QUICK)[0] == ConfigError.exit_code


def test_a_study(folder):
    code, _ = run_here(command("python eval.py"), *QUICK, "study.limit=1", "study.pictures=0", f"hydra.run.dir={folder}/table")
    assert code == 0
    assert (folder / "table" / "table.csv").read_text().count(",done") == 2


def test_training_resuming_and_registering(folder):
    """A network, a source, an augmentation, a term of the loss, a schedule and a logger of one's own, with an optimizer of torch's."""
    printed = command("python train.py").replace("shape=[96,96,96]", " ".join(SMALL))
    assert run_here(printed, "trainer.max_steps=1") == (0, "")
    assert run_here(printed, "trainer.max_steps=2", "resume=true") == (0, "")
    model = folder / "runs" / "mine" / "svf" / "best.safetensors"
    assert read_model(model).settings["predictor"]["_target_"] == "my_package.network.Plain"
    lines = (model.parent / "lines.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines if "terms/volume" in line and line.split()[1].startswith("train/")] == ["1", "2"]
    state = torch.load(model.parent / "state.pt", weights_only=True)
    assert json.loads(state["identity"])["trainer.optimizer._target_"] == "torch.optim.AdamW"
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.01
    learned = command("rdmm register fixed.nii.gz moving.nii.gz -o learned/")
    code, said = run_here(learned.replace("--allow my_package", ""), "--no-report")
    assert code == ConfigError.exit_code and "best.safetensors: " in said and "give --allow my_package" in said
    code, said = run_here(learned, "--no-report")
    assert code in (0, 5), said
    assert run_here(f"rdmm info {model} --allow my_package")[0] == 0


@pytest.mark.parametrize("name", ["dynamic", "swin"])
def test_backbones_of_monai(folder, name):
    from networks.unet import CoarseUNet

    if name == "swin":
        pytest.importorskip("einops")
    with allowing("my_package"):
        small = {"dynamic": ["backbone.features=[4,4,4]"], "swin": ["backbone.features=12", "+backbone.depths=[1,1,1,1]"]}[name]
        backbone = build(compose([f"backbone={name}", *small, "data=shapes"], "train")["backbone"], "backbone")
    net = CoarseUNet(backbone, 2, 2, 3)
    moved = net(torch.rand(1, 2, 72, 40))
    assert moved.shape == (1, 3, 36, 20) and 0 < float(moved.detach().abs().max()) < 0.2, "an untrained network predicts almost nothing"


@pytest.mark.fault(152)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trainer.optimizer._target_=torch.optim.LBFGS", "~trainer.optimizer.weight_decay"], "trainer.optimizer: .* closure"),
        (["trainer.optimizer._target_=torch.optim.SGD", "+trainer.optimizer.weight_deca=1"], "unknown key 'weight_deca'"),
        (["+trainer.optimizer.lr=1"], "trainer.learning_rate"),
        (["trainer.schedule._target_=my_package.visits.VisitImages", "+trainer.schedule.root=x"], "trainer.schedule must be"),
        (["+trainer.schedule.last=-1"], "trainer.schedule: the learning rate of step"),
        (["+loss.terms.size=3"], "loss.terms must be terms by name"),
        (["data/source=visits", "data.source._target_=my_package.training.Decay", "~data.source.root"], "whose class has items"),
        (
            [
                "network.predictor._target_=my_package.training.Shading",
                *(f"~network.predictor.{k}" for k in ("smoother", "shape", "width")),
            ],
            "a torch.nn.Module",
        ),
    ],
)
def test_classes_of_another_kind_are_named_before_any_data_are_read(folder, words, says):
    from train.plan import plan_trainings

    def check(typed):
        config = compose(typed, "train")
        plan_trainings(config, typed)
        build(config["data"], "data")

    with allowing("my_package"), pytest.raises(ConfigError, match=says) as caught:
        check(["experiment=mine", "data.source.root=nowhere", "shape=[16,16]", *words])
    assert "\n" not in str(caught.value)
