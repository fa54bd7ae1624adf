"""Model files and training states whose content was altered, their checksums mended: an error in one line, nothing used in part."""

import json

import pytest
import torch
from safetensors.torch import save
from test_networks import write_small_model

from networks import model as models
from networks.model import Networks
from rdmm import ConfigError, InputError
from rdmm.config.compose import compose, model_settings, quoted
from rdmm.io.models import digest, read_model
from rdmm.registration.entry import build_settings
from rdmm.types import RdmmError
from rdmm.workflows.inspect import info
from train.checkpoint import STATE, Progress, RunFolder

NONSENSE = [None, 5, -1, "x", "", [], {}, [5], {"a": 5}, True, float("nan"), float("inf"), 1.5, 10**400]
DEEP = json.loads("[" * 400 + "]" * 400)


@pytest.fixture
def file(tmp_path):
    write_small_model(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def whole(file):
    """Tensors and header of a sound model file."""
    model = read_model(file)
    head = {"format": 1, "version": "9", "settings": json.loads(json.dumps(dict(model.settings))), "facts": {}}
    return dict(model.tensors), head


def store(file, tensors, head):
    sound = {**head, "sha256": digest(tensors, head)} if "sha256" not in head and isinstance(head, dict) else head
    file.write_bytes(save(tensors, metadata={"rdmm": json.dumps(sound)}))


def refusals(file):
    """What each reader of a model file says; None: it is used."""
    uses = (
        lambda: info(str(file)),
        lambda: models.load(str(file)),
        lambda: model_settings(str(file)),
    )
    said = [refusal(use) for use in uses]
    assert not any("\n" in s or "unexpected" in s or len(s) > 700 for s in said if s)
    return said


def refusal(use):
    try:
        use()
    except RdmmError as error:
        return str(error)
    return None


def test_a_sound_model_is_used(file, whole):
    store(file, *whole)
    assert refusals(file) == [None] * 3
    assert compose([f"weights={quoted(str(file))}"])["initializer"]["_target_"] == "networks.model.predictor"


@pytest.mark.parametrize("name", ["format", "version", "sha256", "settings", "facts"])
@pytest.mark.fault(83, 84)
def test_altered_headers(file, whole, name):
    tensors, head = whole
    for value in [*NONSENSE, DEEP]:
        other = {**head, name: value}
        store(file, tensors, other)
        if (name, value) in (("version", "x"), ("version", "")) or (name == "facts" and isinstance(value, dict)):
            assert refusals(file) == [None] * 3
        elif (name, value) == ("settings", {"a": 5}) or (name, value) == ("settings", {}):
            assert all("name no network" in said for said in refusals(file))
        else:
            assert all(said is not None and "m.safetensors" in said for said in refusals(file)), (name, value)
    if name != "sha256":
        store(file, tensors, {k: v for k, v in head.items() if k != name})
        assert all(f"'{name}'" in said for said in refusals(file))


@pytest.mark.parametrize("text", ["", "[]", "5", "null", '"x"', "{", "[" * 10000, '{"a":' * 5000, "NaN"])
@pytest.mark.fault(83)
def test_headers_that_are_no_object(file, whole, text):
    file.write_bytes(save(whole[0], metadata={"rdmm": text}))
    assert all(said is not None and "header" in said for said in refusals(file))


@pytest.mark.fault(80, 83)
def test_altered_settings(file, whole):
    """Each entry of the settings, and of what they say of the registration, replaced by nonsense: refused where it is used, or used."""
    tensors, head = whole
    for name in head["settings"]:
        for value in NONSENSE:
            store(file, tensors, {**head, "settings": {**head["settings"], name: value}})
            said = refusals(file)
            fits = (value is None and name in ("affine", "predictor")) or (name, value) == ("steps", 5)
            assert all(said) or fits or name == "register", (name, value)
    for name in ("weights", "stages", "new"):
        store(file, tensors, {**head, "settings": {**head["settings"], "register": {name: 5}}})
        assert f"a model cannot set '{name}'" in refusals(file)[2]
    for name, value in (("dynamics", 5), ("similarity", None), ("penalty", []), ("intensity", "x"), ("similarity_weight", float("nan"))):
        register = {**head["settings"]["register"], name: value}
        store(file, tensors, {**head, "settings": {**head["settings"], "register": register}})
        assert refusal(lambda: build_settings(compose([f"weights={quoted(str(file))}"]))), (name, value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_tensors_of_other_floats_are_read(file, whole, dtype):
    tensors, head = whole
    store(file, {k: v.to(dtype) for k, v in tensors.items()}, head)
    assert refusals(file) == [None] * 3
    assert next(models.load(str(file)).parameters()).dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.fault(83)
def test_tensors_that_are_not_finite(file, whole, value):
    tensors, head = whole
    name = next(k for k, v in tensors.items() if v.ndim > 1)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = value
    store(file, tensors, head)
    with pytest.raises(InputError, match=f"tensor '{name}' holds NaN or infinity"):
        models.load(str(file))


# ---- training states


@pytest.fixture
def training(tmp_path):
    """A folder with a state, and what is restored from it."""
    networks = Networks()
    networks.affine = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(networks.parameters())
    networks.affine(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    folder = RunFolder(tmp_path, {}, {"seed": 0})
    folder.save_state(networks, optimizer, Progress(step=3, best=-1.0))
    return folder, networks, optimizer


@pytest.mark.fault(50, 83)
def test_altered_states(training):
    folder, networks, optimizer = training
    assert folder.restore(networks, optimizer) == Progress(step=3, best=-1.0)
    whole = torch.load(folder.path / STATE, weights_only=True)
    others = [whole["progress"], [], 5, "x", None, torch.ones(2), {}]
    for name in whole:
        others += [{**whole, name: v} for v in (*NONSENSE, torch.ones(2))] + [{k: v for k, v in whole.items() if k != name}]
    for name in whole["progress"]:
        others += [{**whole, "progress": {**whole["progress"], name: v}} for v in (float("nan"), "x", [], -5 if name != "best" else "y")]
    for name in ("exp_avg", "exp_avg_sq", "step"):
        moments = {**whole["optimizer"]["state"]}
        for value in (None, [], "x", torch.ones(3), torch.full((2, 2), torch.nan)):
            moments[0] = {**whole["optimizer"]["state"][0], name: value}
            others.append({**whole, "optimizer": {**whole["optimizer"], "state": dict(moments)}})
    others += [{**whole, "networks": {k: v * torch.inf for k, v in whole["networks"].items()}}]
    others += [{**whole, "identity": text} for text in ("", "[]", "5", "null", "{", "[" * 10000, '{"a":' * 2000 + "1" + "}" * 2000)]
    for other in others:
        torch.save(other, folder.path / STATE)
        with pytest.raises((InputError, ConfigError), match=r"state\.pt") as caught:
            folder.restore(networks, optimizer)
        assert "\n" not in str(caught.value)
