"""Commands that the pages print are given to bash exactly as printed; training's are run, on small data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_faults_input import make_picture, save_nifti

from rdmm.cli import program
from rdmm.config.compose import compose, share
from rdmm.types import DivergenceError

PAGES = ("README.md", "docs/training.md", "docs/study.md")
PROGRAMS = ("python", "rdmm")
RECORD = """#!{python}
import json, sys
with open({record!r}, "a") as file:
    file.write(json.dumps(["{name}", *sys.argv[1:]]) + "\\n")
"""
SMALL = ["shape=[16,16,16]", "data.shares=[0.6,0.2,0.2]", "data.limit=2", "backbone.features=[4,4,4,4,4]", "trainer.max_steps=3"]
SMALL += ["table.limit=1", "table.optimized=['optimizer.iterations=[2,2,2]']", "threads=1"]


def printed(page: str) -> list[str]:
    """The commands in the blocks of a page, each with its continued lines. Those with "..." are no whole commands."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (share() / page).read_text(), re.M | re.S)
    commands = [c for block in blocks for c in re.findall(rf"^(?:{'|'.join(PROGRAMS)}) (?:.*\\\n)*.*$", block, re.M)]
    return [c for c in commands if "..." not in c]


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def bash(script: str, bin: Path, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-ec", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=400)


def typed(tmp_path: Path, commands: list[str]) -> list[list[str]]:
    """The words that bash makes of commands."""
    for name in PROGRAMS:
        write_program(tmp_path / name, RECORD.format(python=sys.executable, record=str(tmp_path / "record"), name=name))
    done = bash("\n".join(commands), tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_what_bash_makes_of_a_printed_command_is_understood(tmp_path, page):
    """Options of rdmm are parsed; settings of train.py and eval.py are composed."""
    commands = printed(page)
    assert commands
    for name, *words in typed(tmp_path, commands):
        if name == "rdmm":
            program.main.commands[words[0]].make_context(words[0], words[1:])
        elif words[0] in ("train.py", "eval.py"):
            compose([w for w in words[1:] if not w.startswith("hydra")], words[0].removesuffix(".py"))


@pytest.mark.slow
def test_from_a_folder_to_a_registration(tmp_path):
    """The commands of docs/training.md, on a folder of small volumes; README prints the same one."""
    commands = printed("docs/training.md")
    train, *register = commands[: next(i for i, c in enumerate(commands) if "rdmm info" in c) + 1]
    assert train.startswith("python train.py")
    plain = [" ".join(c.replace("\\\n", " ").split()) for page in ("README.md", "docs/training.md") for c in printed(page)]
    assert plain.count(" ".join(train.replace("\\\n", " ").split())) == 2
    (tmp_path / "data").mkdir()
    (tmp_path / "bin").mkdir()
    for number in range(12):
        save_nifti(tmp_path / "data" / f"90{number // 2}_{('00m', '12m')[number % 2]}.nii.gz", make_picture(number))
    for name, number in (("fixed", 20), ("moving", 21)):
        save_nifti(tmp_path / f"{name}.nii.gz", make_picture(number))
    (tmp_path / "train.py").symlink_to(share() / "train.py")
    small = " ".join(f'"{word}"' for word in SMALL)
    write_program(tmp_path / "bin" / "python", f'#!/bin/bash\nexec {sys.executable} "$@" {small}\n')
    failed_verdict = DivergenceError.exit_code  # three steps of training move nothing
    write_program(tmp_path / "bin" / "rdmm", f'#!/bin/bash\n{sys.executable} -m rdmm "$@" || [ $? = {failed_verdict} ]\n')
    done = bash("\n".join([train, *(c.replace(" -o out/", f" -o out{k}/") for k, c in enumerate(register))]), tmp_path / "bin", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "runs/mine/table.md").read_text()
    assert all(f"| test | {m} | 1 | 0 |" in text for m in ("affine-net", "affine-opt", "rdmm-net", "rdmm-net+5", "rdmm-opt"))
    assert re.search(r"train: 8 images of 4 subjects \(90\d, ", (tmp_path / "runs/mine/train.log").read_text())
    for k in range(2):
        assert {"1Warp.nii.gz", "0GenericAffine.mat", "Sigma0.nii.gz"} <= {p.name for p in (tmp_path / f"out{k}").iterdir()}
