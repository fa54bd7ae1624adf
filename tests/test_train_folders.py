"""A training never deletes what an earlier one left: its folder is gone on with, moved aside, or left alone."""

import hashlib
import json

import pytest
from test_faults_input import make_picture, save_nifti
from test_training import networks, training

from rdmm.config.compose import compose
from rdmm.types import ConfigError, OutputError, RdmmError
from train.checkpoint import BEST, LAST, STATE, RunFolder
from train.main import train_and_compare

TINY = ["experiment=synthetic2d_net", "~models", "shape=[16,16]", "backbone.features=[4,4,4,4,4]", "data.limit=1", "table.limit=0"]
TINY += ["trainer.max_steps=2", "trainer.batch=1", "trainer.validate_every=1", "trainer.checkpoint_every=1", "dynamics=svf", "penalty=none"]
NET = "svf"


def train(out, *keys):
    words = [*TINY, *keys]
    out.mkdir(exist_ok=True)
    return train_and_compare(compose(words, "train"), words, out)


def content(folder):
    """The checksum of every file below a folder, without the lock's."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    ended = train(out)
    assert ended.code == 0 and 0 < ended.value < 1, "a sweep compares Dice of the validation pairs"
    return out


def broken_folder(tmp_path):
    for k in range(4):
        save_nifti(tmp_path / f"s{k}.nii.gz", make_picture(k)[:, :, 8])
    (tmp_path / "s9.nii.gz").write_bytes(b"broken")
    return tmp_path


@pytest.mark.fault(97)
@pytest.mark.parametrize("gone", [[], [STATE], [LAST], [STATE, LAST], [STATE, BEST], [STATE, LAST, BEST]])
def test_a_run_without_resume_touches_no_file_of_an_earlier_one(run, gone):
    """Fault 97, whichever of its files is missing."""
    away = {name: (run / NET / name).read_bytes() for name in gone}
    for name in gone:
        (run / NET / name).unlink()
    before = content(run)
    try:
        with pytest.raises(OutputError, match="a run is there already"):
            train(run)
        assert content(run) == before
    finally:
        for name, data in away.items():
            (run / NET / name).write_bytes(data)


@pytest.mark.fault(97)
@pytest.mark.parametrize(
    "typo",
    [
        ["data=folder", "data.source.root=/nowhere"],
        ["data=folder", "data.source=table", "data.source.path=/nowhere.csv"],
        ["data=folder", "data.source.root=BROKEN", "shape=[16,16]", "data.shares=[1,0,0]"],
        ["device=cuda:99"],
        ["start=/nowhere.safetensors"],
        ["trainer.learning_rate=-1"],
        ["table.refine=x"],
        ["resume=true"],
    ],
)
def test_with_overwrite_a_mistake_loses_nothing(run, tmp_path, typo):
    """Fault 97: with overwrite=true, data, device and settings are checked before anything moves."""
    words = [t.replace("BROKEN", str(broken_folder(tmp_path))) if "BROKEN" in t else t for t in typo]
    before = content(run)
    with pytest.raises(RdmmError):
        train(run, "overwrite=true", *words)
    assert content(run) == before and not list(run.glob("*.1"))


@pytest.mark.fault(97)
def test_overwrite_moves_the_earlier_run_aside(tmp_path):
    """Fault 97: twice; every model, state and log is still there, and a result of the earlier run as well."""
    out = tmp_path / "run"
    train(out)
    first, models = content(out / NET), (out / "models.json").read_bytes()
    train(out, "seed=1", "overwrite=true")
    assert content(out / f"{NET}.1") == first and (out / "models.json.1").read_bytes() == models
    second = content(out / NET)
    train(out, "seed=2", "overwrite=true", "trainer.max_steps=1")
    assert content(out / f"{NET}.1") == first and content(out / f"{NET}.2") == second
    assert json.loads((out / "models.json").read_text()) == {NET: f"{NET}/{BEST}"}


@pytest.mark.fault(97)
def test_a_run_of_several_networks_moves_aside_whole(tmp_path):
    """Killed after the first network of the new run, resume=true must not go on with the second one of the earlier run."""
    out = tmp_path / "run"
    for name in ("a", "b"):
        (out / name).mkdir(parents=True)
        (out / name / LAST).write_bytes(b"earlier")
    config = compose([*TINY, "+models.a=['dynamics=svf']", "+models.b=['dynamics=svf']", "overwrite=true"], "train")
    train_and_compare(config, TINY[2:], out)
    assert all((out / f"{name}.1" / LAST).read_bytes() == b"earlier" for name in ("a", "b"))


@pytest.mark.fault(97)
def test_resume_without_a_state_keeps_the_models(tmp_path):
    """Models without their state.pt: nothing to go on from, and nothing is written over them."""
    out = tmp_path / "run"
    train(out)
    (out / NET / STATE).unlink()
    before = content(out)
    with pytest.raises(OutputError, match=r"no state\.pt to go on from"):
        train(out, "resume=true")
    assert content(out) == before
    with pytest.raises(ConfigError, match="overwrite=true and resume=true"):
        train(out, "resume=true", "overwrite=true")


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


@pytest.mark.fault(50)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_file_every_model_file_is_there_in_the_end(tmp_path, monkeypatch, moment):
    """Fault 50: killed before or after each file that it writes, and resumed: the files of an uninterrupted run, to the bit."""
    more = {"max_steps": 2, "validate_every": 1, "checkpoint_every": 1, "keep": True}
    training(tmp_path / "whole", **more).run()
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").glob("*.safetensors")}
    assert len(whole) == 4
    number = 0
    while True:
        number += 1
        left = [number]

        def killing(write, left=left):
            def wrapped(self, *arguments):
                left[0] -= 1
                if left[0] == 0 and moment == "before":
                    raise Killed
                write(self, *arguments)
                if left[0] == 0:
                    raise Killed

            return wrapped

        with monkeypatch.context() as patched:
            for name in ("save_state", "save_model"):
                patched.setattr(RunFolder, name, killing(getattr(RunFolder, name)))
            try:
                training(tmp_path / str(number), **more).run()
                break
            except Killed:
                pass
        training(tmp_path / str(number), networks(seed=9 if number > 1 else 0), resume=True, **more).run()
        assert {p.name: p.read_bytes() for p in (tmp_path / str(number)).glob("*.safetensors")} == whole, number
    assert number > 8


def test_a_run_has_a_state_from_its_first_step_on(tmp_path):
    """Killed before its first checkpoint, a run is gone on with as any other."""
    out = tmp_path / "run"
    train(out, "resume=true", "trainer.checkpoint_every=2", "trainer.max_steps=2")
    whole = (out / NET / LAST).read_bytes()
    again = tmp_path / "again"
    (again / NET).mkdir(parents=True)
    train(again, "resume=true", "trainer.checkpoint_every=2", "trainer.max_steps=2")
    assert (again / NET / LAST).read_bytes() == whole
