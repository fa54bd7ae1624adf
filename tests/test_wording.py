"""Messages name options as the user of the process writes them: ``--overwrite`` on the command line, ``overwrite=True`` in Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import rdmm
from rdmm import Grid, Image, RdmmError, io
from rdmm.cli import main
from rdmm.types import option, options_are_typed
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import run_job

PACKAGE = Path(rdmm.__file__).parent
ONLY_TYPED = {"cli", "workflows"}
"""Folders whose texts Python does not meet: commands, and studies that they start."""

READERS_OF_COMMANDS = {"registration/record.py", "config/program.py", "data/given.py"}
"""Files that parse command lines, or hold their help texts."""


def test_an_option_in_both_words() -> None:
    python = [option("overwrite"), option("nan", "zero"), option("volume", "K"), option("from_", "itk"), option("init", "")]
    assert python == ["overwrite=True", 'nan="zero"', "volume=K", 'from_="itk"', "init"]
    with options_are_typed():
        typed = [option("overwrite"), option("nan", "zero"), option("volume", "K"), option("from_", "itk"), option("fixed_mask", "")]
    assert typed == ["--overwrite", "--nan zero", "--volume K", "--from itk", "--fixed-mask"]
    assert option("overwrite") == "overwrite=True"


def texts(path: Path) -> Iterator[str]:
    """The texts of a module that are no docstrings; whole commands, which say ``rdmm NAME``, may be run by anyone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            docs |= {id(part) for part in node.values}
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            text = node.value
        else:
            continue
        yield text


def test_only_option_words_an_option() -> None:
    known = {o.lstrip("-") for command in main.commands.values() for p in command.params for o in p.opts}
    places = [p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py")]
    met = [p for p in places if p.parts[0] not in ONLY_TYPED and str(p) not in READERS_OF_COMMANDS]
    for place, text in ((p, text) for p in met for text in texts(PACKAGE / p)):
        if not re.search(r"\brdmm (convert|invert|jacobian|apply)\b|lta_convert|fnirtfileutils", text):
            found = re.findall(r"(?<![\w-])--([a-z][a-z-]*)", text)
            assert not known & set(found), f"{place}: {text!r}: use rdmm.types.option"


def cases(folder: Path) -> dict[str, tuple[Callable[[], object], str]]:
    """Calls that are refused, and the argument that the message names."""
    image = Image(torch.rand(1, 1, 6, 6), Grid.unit((6, 6)))
    path, nan = image.save(folder / "image.nii.gz"), Image(image.data.clone(), image.grid)
    nan.data[0, 0, 0, 0] = torch.nan
    far = Image(image.data, Grid((6, 6), np.array([[1.0, 0, 1e4], [0, 1, 0], [0, 0, 1]])))
    volumes = np.zeros((6, 6, 6, 2))
    affine, taken = folder / "affine.txt", folder / "taken.mat"
    affine.write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    taken.write_text("")
    return {
        "save": (lambda: image.save(path), "overwrite=True"),
        "apply": (lambda: rdmm.apply(image, np.eye(3), image, out=path), "overwrite=True"),
        "compose": (lambda: rdmm.compose([np.eye(3)], taken), "overwrite=True"),
        "convert": (lambda: rdmm.convert(affine, folder / "new.mat"), 'from_="'),
        "convert to": (lambda: rdmm.convert(np.eye(4), folder / "new.mat", to="fls"), 'to="fls"'),
        "convert to fsl": (lambda: rdmm.convert(np.eye(4), folder / "new.mat", to="fsl"), "fixed=IMAGE"),
        "invert": (lambda: rdmm.convert(np.eye(4), folder / "new.nii.gz"), "fixed=IMAGE"),
        "evaluate": (lambda: rdmm.evaluate(np.eye(3), fixed_labels=image), "fixed_labels"),
        "nan": (lambda: rdmm.register(nan, nan), 'nan="zero"'),
        "far": (lambda: rdmm.register(image, far), 'init="com"'),
        "volumes": (lambda: rdmm.register(volumes, volumes), "volume=K"),
        "volume": (lambda: rdmm.register(volumes, volumes, volume=7), "volume=7"),
        "device": (lambda: rdmm.register(image, image, device="gpu"), 'device="gpu"'),
        "landmarks": (lambda: rdmm.register(image, image, landmark_weight=1), "landmarks=CSV"),
        "regions": (lambda: rdmm.register(image, image, dynamics="rdmm", initializer="regions"), 'regions="LABELS'),
        "init": (lambda: rdmm.register(image, image, affine="none", init="com"), "init"),
    }


def test_errors_in_python_name_arguments(tmp_path: Path) -> None:
    for name, (call, word) in cases(tmp_path).items():
        with pytest.raises(RdmmError) as error:
            call()
        message = re.sub(r"rdmm \w+ .*", "", str(error.value))
        assert word in message and "--" not in message, f"{name}: {message}"


def test_a_pair_of_a_batch_is_told_in_words_of_the_command_line(tmp_path: Path) -> None:
    """Its process does not start at the command line."""
    image = Image(torch.full((1, 1, 6, 6), torch.nan), Grid.unit((6, 6)))
    image.data[..., 0] = 1
    path = str(image.save(tmp_path / "nan.nii.gz"))
    assert "--nan zero" in run_job(Job(path, path, f"{tmp_path}/out/"))["message"]


def test_strict_is_named(tmp_path: Path) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(np.zeros((6, 6, 6), np.float32), None)
    nib.save(image, tmp_path / "nowhere.nii")
    with pytest.raises(RdmmError, match="strict=True"):
        io.read_image(tmp_path / "nowhere.nii", strict=True)
