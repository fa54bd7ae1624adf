"""Numbers of options, and arguments of the Python API: what is no number in the range is refused before anything is read."""

import math
from typing import get_args

import click
import numpy as np
import pytest
import torch

import rdmm
from rdmm import ConfigError, InputError
from rdmm.cli import main
from rdmm.data.given import AFFINE_STARTS
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.kernels.available import set_threads
from rdmm.registration.entry import to_overrides
from rdmm.stages.affine_search import Init
from rdmm.workflows.job import Job

NO_NUMBERS = ["nan", "inf", "-inf", "1e400", "-1", "-0.5", "x", "", "1e", "0x1", "1,5", str(2**70), "1" * 5000]
NUMERIC = [
    pytest.param(command, option, id=f"{name} {option.opts[0]}")
    for name, command in main.commands.items()
    for option in command.params
    if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
]


@pytest.mark.parametrize(("command", "option"), NUMERIC)
@pytest.mark.fault(68, 70)
def test_numbers_of_options(command, option):
    assert option.opts[0] in ("--volume", "--max-folding", "--threads", "--seed", "--jobs", "--blur", "--reach", "--default-value")
    for text in NO_NUMBERS:
        if option.opts[0] == "--default-value" and text in ("-1", "-0.5", str(2**70)):
            continue  # an intensity
        if option.opts[0] in ("--jobs", "--volume", "--blur", "--reach") and text in (str(2**70), "1" * 5000):
            continue  # as many as one likes
        with pytest.raises(click.BadParameter) as caught:
            option.type.convert(text, option, None)
        assert caught.value.exit_code == 2
    for text in ("1", "7"):
        assert option.type.convert(text, option, None) == float(text)
    assert option.opts[0] in ("--volume", "--seed", "--max-folding", "--default-value") or refuses_zero(option)


def refuses_zero(option):
    with pytest.raises(click.BadParameter):
        option.type.convert("0", option, None)
    return True


def test_the_starts_of_the_affine_search_are_named_once():
    assert get_args(Init) == AFFINE_STARTS


@pytest.fixture(scope="module")
def pair():
    return shapes_pair(3, (24, 24))[0]


WRONG = {
    "threads": ["a", 0, -1, 2.5, True, 10**11, 2**70, math.nan, [1], np.float64(2)],
    "seed": ["a", -1, 2**64, 2**70, 1.5, math.nan, None, True, [1], torch.tensor(1.5)],
    "volume": ["x", -1, 1.5, 2**70, True, [0], math.inf],
    "device": [5, None, "cudaa", "meta", "cuda:99", "", ["cpu"], math.nan],
    "init": ["x", 5, True, "", ["com"], math.nan],
    "nan": ["x", 5, None, "", ["zero"], math.nan],
    "strict": ["no", 5, None, [1]],
    "overrides": ["dynamics=rdmm", 5, [5], [None], None, {"a": 1}.keys()],
    "similarity_weight": [math.nan, math.inf, -math.inf, -1, object(), {1}, torch, 1j],
    "weights": [5, [1], True, math.nan],
    "optimizer__scales": [math.nan, [math.nan], [[0.5]], np.array([np.nan]), {"a": 1}],
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.fault(68)
def test_arguments_of_the_python_api(pair, name):
    """The error names the argument as Python spells it."""
    for value in WRONG[name]:
        with pytest.raises(ConfigError) as caught:
            rdmm.register(fixed=pair.fixed, moving=pair.moving, affine="none", optimizer="none", **{name: value})
        message = str(caught.value)
        assert name.replace("__", ".") in message and "\n" not in message and len(message) < 400, message


def test_numpys_numbers_are_numbers(pair):
    done = rdmm.register(
        fixed=pair.fixed,
        moving=pair.moving,
        affine="none",
        optimizer="none",
        seed=np.int64(3),
        threads=np.int32(1),
        similarity_weight=np.float32(2),
    )
    assert done.provenance.seed == 3 and type(done.provenance.seed) is int
    assert done.config["similarity_weight"] == 2.0
    assert to_overrides({"optimizer__scales": np.array([0.5, 1.0])}) == ["optimizer.scales=[0.5, 1.0]"]
    set_threads(1)


@pytest.mark.parametrize(("fixed", "moving"), [("a.nii.gz", "b.vtk"), ("a.ply", "b.nii.gz"), ("a.vtk", "b.nii")])
def test_an_image_with_a_shape(fixed, moving):
    """Both files are named, with what each is."""
    with pytest.raises(InputError, match="two images or two shapes") as error:
        Job(fixed, moving, "out/").read()
    assert f"{fixed} is a" in str(error.value) and f"{moving} is a" in str(error.value)
