"""Steps of a training: batches added up, the mean of the weights, a run that is extended, and one that starts from another."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_train_folders import NET, train
from test_training import networks, training

from networks.model import load
from rdmm import ConfigError, InputError
from train.checkpoint import BEST, LAST, STATE
from train.trainer import Trainer

SMALL = {"max_steps": 4, "batch": 1, "validate_every": 2, "checkpoint_every": 2, "warmup": 1}


AFFINE = ["affine=net", "affine_trainer.max_steps=1", "network.affine.keypoints=8"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run of an affine network and a predictor."""
    out = tmp_path_factory.mktemp("first") / "run"
    train(out, *AFFINE)
    return out


def tensors(path):
    return load_file(path)


def state_of(path):
    return torch.load(path / STATE, weights_only=True)


def test_batches_that_add_up_take_the_steps_of_a_large_one(tmp_path):
    """The same loss, and nearly the same weights."""
    losses = {}
    for name, more in {"large": {"batch": 4}, "added": {"batch": 2, "accumulate": 2}}.items():
        run = training(tmp_path / name, **{**SMALL, **more, "max_steps": 2})
        losses[name] = []
        run.log.log_step = lambda progress, t, outcome, *_, name=name: losses[name].append(outcome.terms["loss"])
        run.run()
    assert losses["added"] == pytest.approx(losses["large"], rel=1e-4)
    large, added = (tensors(tmp_path / name / LAST) for name in ("large", "added"))
    assert all(torch.allclose(large[k], added[k], atol=2e-4) for k in large)
    assert any(not torch.equal(v, networks().state_dict()[k]) for k, v in added.items())


def test_the_mean_of_the_weights_is_what_is_validated_and_saved(tmp_path):
    """n steps: the mean that the decay and its start say, computed here from the weights after each step."""
    run = training(tmp_path, ema=0.5, **SMALL)
    seen, judged = [], []
    step, validate = run._step, run._validate

    def watched(*arguments):
        out = step(*arguments)
        seen.append({k: v.clone() for k, v in run.networks.state_dict().items()})
        return out

    run._step = watched
    run._validate = lambda objective, *rest: (judged.append(objective.network), validate(objective, *rest))
    run.run()
    mean = dict(seen[0])
    for n, now in enumerate(seen[1:], 1):
        mean = {k: torch.lerp(mean[k], v, max(0.5, 9 / (10 + n))) for k, v in now.items()}
    last = tensors(tmp_path / LAST)
    assert all(torch.allclose(last[k], mean[k], atol=1e-7) for k in mean)
    assert any(not torch.equal(last[k], seen[-1][k]) for k in mean)
    assert all(net is run.model.predictor is not run.networks.predictor for net in judged)
    assert all(torch.equal(v, state_of(tmp_path)["networks"][k]) for k, v in seen[-1].items())


@pytest.mark.fault(50)
def test_with_both_a_run_goes_on_to_the_same_files(tmp_path):
    """Fault 50, with the mean of the weights and with batches that add up."""
    more = {**SMALL, "ema": 0.9, "accumulate": 2}
    training(tmp_path / "whole", **more).run()
    cut = training(tmp_path / "cut", **more)
    step = cut._step
    cut._step = lambda *arguments: step(*arguments) or arguments[-1].step == 3
    assert cut.run().step == 3
    training(tmp_path / "cut", networks(seed=9), resume=True, **more).run()
    for name in (LAST, BEST):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_can_be_extended(first, tmp_path):
    """Adam's moments are kept, a new schedule begins, and the extended run can be interrupted as any other."""
    out = shutil.copytree(first, tmp_path / "run")
    before = state_of(out / NET)
    with pytest.raises(ConfigError, match=r"was trained with trainer\.max_steps=2, not 1"):
        train(out, *AFFINE, "resume=true", "trainer.max_steps=1")
    with pytest.raises(ConfigError, match=r"was trained with trainer\.learning_rate"):
        train(out, *AFFINE, "resume=true", "trainer.learning_rate=1e-4")
    schedule = ["trainer.max_steps=5", "trainer.learning_rate=5e-4", "trainer.warmup=1"]
    of_affine = ["+affine_trainer.learning_rate=1e-3", "+affine_trainer.warmup=100"]  # what it had: it is finished
    assert train(out, *AFFINE, "resume=true", *schedule, *of_affine).code == 0
    after = state_of(out / NET)
    assert (before["progress"]["step"], after["progress"]["step"], after["progress"]["begin"]) == (2, 5, 2)
    assert float(after["optimizer"]["state"][0]["step"]) == 5  # of Adam: its moments were not made anew
    t = Trainer(max_steps=5, learning_rate=5e-4, warmup=1)
    assert after["optimizer"]["param_groups"][0]["lr"] == t.rate(4, begin=2)
    assert t.rate(2, begin=2) == pytest.approx(5e-4) and t.rate(5, begin=2) == pytest.approx(5e-6)


def test_a_run_starts_from_the_weights_of_another(first, tmp_path):
    """On other data: from a model file the weights, from a state.pt Adam's moments as well."""
    first = first / NET
    for name, steps in ((LAST, 1), (STATE, 3)):
        out = tmp_path / name
        assert train(out, f"start={first / name}", "seed=5", "trainer.max_steps=1", "trainer.learning_rate=1e-9").code == 0
        own = tensors(out / NET / LAST)
        assert all(torch.allclose(own[k], v, atol=1e-8) for k, v in tensors(first / LAST).items() if k in own)
        assert float(state_of(out / NET)["optimizer"]["state"][0]["step"]) == steps
    with pytest.raises(ConfigError, match=r"no tensor of .* fits|moments of Adam do not fit"):
        train(tmp_path / "other", f"start={first / STATE}", "backbone.features=[8,8,8,8,8]")
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no state of a training run"):
        train(tmp_path / "third", f"start={tmp_path / 'broken.pt'}")


def test_the_affine_network_starts_from_the_same_file(first, tmp_path):
    file = first / NET / LAST
    rate = ["trainer.learning_rate=1e-9", "trainer.max_steps=1", "seed=3"]
    train(tmp_path / "second", *AFFINE, *rate, f"start={file}")
    own, given = load(str(tmp_path / "second/affine" / LAST)).state_dict(), load(str(file)).state_dict()
    assert all(torch.allclose(own[k], given[k], atol=1e-8) for k in own)


def test_a_step_in_parts_needs_whole_parts():
    with pytest.raises(ConfigError, match=r"trainer\.ema must be at least 0 and below 1"):
        Trainer(ema=1.0)
    with pytest.raises(ConfigError, match=r"trainer\.accumulate must be at least 1"):
        Trainer(accumulate=0)
