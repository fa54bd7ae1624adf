"""Commands that the pages print are given to bash exactly as printed; those of docs/training.md are run (test_training_page.py)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rdmm.cli import program
from rdmm.config.compose import compose, share

PAGES = ("README.md", "docs/training.md", "docs/study.md")
PROGRAMS = ("python", "rdmm", "torchrun")
RECORD = """#!{python}
import json, sys
with open({record!r}, "a") as file:
    file.write(json.dumps(["{name}", *sys.argv[1:]]) + "\\n")
"""


def printed(page: str) -> list[str]:
    """The commands in the blocks of a page, each with its continued lines. Those with "..." are no whole commands."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (share() / page).read_text(), re.M | re.S)
    commands = [c for block in blocks for c in re.findall(rf"^(?:{'|'.join(PROGRAMS)}) (?:.*\\\n)*.*$", block, re.M)]
    return [c for c in commands if "..." not in c]


def program_of(words: list[str]) -> str | None:
    """Which of our programs python, or torchrun, is told to start."""
    names = {"train.py": "train", "eval.py": "eval", "train": "train", "eval": "eval"}
    return next((names[w] for w in words if w in names), None)


def settings_in(words: list[str]) -> list[str]:
    """The KEY=VALUE of a command, without those of Hydra itself."""
    return [w for w in words if "=" in w and not w.startswith(("hydra", "-"))]


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def typed(tmp_path: Path, commands: list[str]) -> list[list[str]]:
    """The words that bash makes of commands."""
    for name in PROGRAMS:
        write_program(tmp_path / name, RECORD.format(python=sys.executable, record=str(tmp_path / "record"), name=name))
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", "\n".join(commands)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
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
        elif (called := program_of(words)) is not None:
            compose(settings_in(words), called)
