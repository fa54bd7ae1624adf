"""Settings KEY=VALUE of every composition, and the files of models and trainings that hold settings."""

from __future__ import annotations

import functools
import io as streams
import json
import math
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from fuzzing.case import WORDS, Case, Rng, chance, count, json_bytes, mutated, perhaps_damaged, pick
from networks.model import Networks, build_networks
from networks.model import load as load_networks
from rdmm.config.compose import compose, model_settings
from rdmm.config.explain import flatten, groups, options_of
from rdmm.config.renamed import current
from rdmm.io.models import digest
from rdmm.registration.entry import compose_settings
from rdmm.registration.record import nan_to_null
from rdmm.workflows import inspect
from train.checkpoint import Progress, RunFolder

STORED = Path(__file__).parents[1] / "stored"

VALUES = ("", "1", "-1", "0", "0.5", "nan", "-inf", "1e400", "1e30", "1e-30", "32767", "null", "???", "true", "text", "[]", "{}", "[[]]")
VALUES += ("[0.1,nan]", "[-1]", "[1,x]", "[1,2", "{a:b}", "{_target_: os.system}", "${oc.env:HOME}", "${seed}", "'", '"', "é", "a=b", "a b")
VALUES += (
    "[" * 300 + "]" * 300,
    "9" * 400,
    "x" * 400,
    "../x",
    "a.b",
    "1,2",
    "range(1,3)",
    "[1,2,3]",
    "[0.25,0.5,1.0]",
    "\udcff",
    "1_0",
    "0x1F",
)
VALUES += ("\\", "\x1b[2J")


@functools.cache
def keys(name: str) -> Sequence[str]:
    """All keys that the default composition has, and the groups."""
    return [*groups(), *flatten(compose((), name))]


def word(rng: Rng, name: str) -> str:
    """One override: of a key of the composition, or of a key that does not exist; a group often gets one of its options."""
    key = pick(rng, keys(name))
    if chance(rng, 0.1):
        key = pick(rng, ("+" + key, "++" + key, "~" + key, key + ".x", key[:-1], key + "@x", "hydra.run.dir", "", " " + key))
    if key in groups() and chance(rng, 0.6):
        return f"{key}={pick(rng, options_of(key))}"
    return f"{key}={pick(rng, VALUES)}" if chance(rng, 0.98) else pick(rng, WORDS)


def numbers(node: Any) -> Iterator[float]:
    """All numbers in nested settings."""
    if isinstance(node, Mapping | list):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from numbers(value)
    elif isinstance(node, float):
        yield node


def draw_settings(rng: Rng) -> Case:
    """One or two overrides. Settings that are accepted are finite, can be stored, and give the same settings when typed again."""
    name = pick(rng, ("register", "register", "shapes", "train", "eval"))
    words = [word(rng, name) for _ in range(pick(rng, (1, 1, 2)))]

    def run(folder: Path) -> None:
        config = compose(words, name) if name in ("train", "eval") else compose_settings(words, name).config
        assert all(map(math.isfinite, numbers(config))), "a setting that is not finite"
        json.dumps(nan_to_null(config), allow_nan=False)

    return Case(run, shown=f"{name}: {words}"[:300])


MODEL = (STORED / "model.safetensors").read_bytes()
NUMBERS = (0, -1, 1, 2, 3, 7, 1e-9, 1e30, -1.5, 10**9, 10**30, True, None, [], [0], [2, 2], [16, 16], [8, 8, 8], "x", {}, {"a": 1})


def model_bytes(rng: Rng) -> bytes:
    """A model file with other settings, facts or tensors, and the right checksum; or a damaged one."""
    tensors = dict(load(MODEL))
    head = json.loads(json.loads(MODEL[8 : 8 + int.from_bytes(MODEL[:8], "little")])["__metadata__"]["rdmm"])
    for _ in range(int(rng.integers(0, 3))):
        head |= {"settings": mutated(rng, head["settings"], NUMBERS)}
    if chance(rng, 0.2):
        head[pick(rng, sorted(head))] = pick(rng, NUMBERS)
    if chance(rng, 0.3):
        name = pick(rng, sorted(tensors))
        harmed = (tensors[name] * torch.nan, tensors[name][..., :0], tensors[name].to(torch.bfloat16), tensors[name].to(torch.int8))
        tensors[name] = pick(rng, (*harmed, tensors[name].to(torch.float8_e4m3fn), torch.zeros(3, 3), tensors[name].double())).contiguous()
    if chance(rng, 0.1):
        tensors[pick(rng, ("more", "é", "x" * 300))] = torch.zeros(2)
    if "sha256" in head:
        head["sha256"] = digest(tensors, head) if chance(rng, 0.95) else "0" * 64
    return save(tensors, metadata={"rdmm": json.dumps(head, sort_keys=True)} if chance(rng, 0.97) else {})


def raw_safetensors(rng: Rng) -> bytes:
    """A safetensors file whose header is drawn: types, shapes and places that do not fit."""
    kinds, shapes = ("F32", "F64", "BF16", "F8_E4M3", "I64", "BOOL", "U16", "X"), ([2, 2], [4], [], [0], [-1], [2**40], [2**62, 4], "x")
    entry = {"dtype": pick(rng, kinds), "shape": pick(rng, shapes), "data_offsets": pick(rng, ([0, 16], [0, 2**50], [16, 0], [0], [-1, 5]))}
    metadata = pick(rng, ({}, None, {"rdmm": "x"}))
    header = json_bytes(rng, {"momentum": mutated(rng, entry) if chance(rng, 0.3) else entry, "__metadata__": metadata})
    return struct.pack("<Q", count(rng, len(header), 0.1) % 2**64) + header + rng.bytes(16)


def draw_model(rng: Rng) -> Case:
    """A model file: described, and its networks built."""
    is_raw = chance(rng, 0.2)
    data = perhaps_damaged(rng, raw_safetensors(rng) if is_raw else model_bytes(rng), 0.15)

    def run(folder: Path) -> None:
        path = folder / "m.safetensors"
        inspect.info(str(path))
        model_settings(str(path))
        networks = load_networks(str(path))
        assert all(bool(x.isfinite().all()) for x in networks.state_dict().values()), "parameters that are not finite"
        assert json.dumps(nan_to_null(compose([f"weights={path}"])), allow_nan=False)

    return Case(run, {"m.safetensors": data})


def optimizer_of(networks: Networks) -> torch.optim.Optimizer:
    return torch.optim.AdamW(networks.parameters(), lr=1e-3)


@functools.cache
def _training() -> tuple[dict[str, Any], Networks]:
    """The state of a training after one step, and its networks."""
    networks = build_networks(current(model_settings(str(STORED / "model.safetensors"))))
    optimizer = optimizer_of(networks)
    torch.stack([x.sum() for x in networks.parameters()]).sum().backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        RunFolder(Path(folder), {}, IDENTITY).save_state(networks, optimizer, Progress(step=1, length=0.5))
        return torch.load(Path(folder, "state.pt"), weights_only=True), networks


IDENTITY = {"seed": 0, "trainer.steps": 4}


def draw_state(rng: Rng) -> Case:
    """The state of a training: refused, or a step and finite numbers."""
    state, networks = _training()
    if chance(rng, 0.7):
        part = pick(rng, ("progress", "identity", "optimizer", "networks"))
        state = {**state, part: mutated(rng, state[part], (*NUMBERS, float("nan"), torch.zeros(2), "{}"))}
    buffer = streams.BytesIO()
    torch.save(state, buffer)
    data = perhaps_damaged(rng, buffer.getvalue(), 0.3)

    def run(folder: Path) -> None:
        optimizer = optimizer_of(networks)
        progress = RunFolder(folder, {}, IDENTITY).restore(networks, optimizer)
        assert progress is not None and progress.step >= 0 and math.isfinite(progress.length)
        for x in networks.parameters():
            x.grad = torch.zeros_like(x)
        optimizer.step()  # what was restored can be used

    return Case(run, {"state.pt": data})


GENERATORS = {"settings": draw_settings, "model": draw_model, "state": draw_state}
