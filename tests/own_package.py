"""The package of docs/extending.md in a folder outside the checkout, and the programs run there, in this process."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from rdmm import io
from rdmm.cli import main
from rdmm.config.compose import share
from rdmm.config.location import use_folders
from rdmm.data.synthetic.scenes import shapes_pair

PAGE = (share() / "docs" / "extending.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)\n```", PAGE, re.M | re.S) for line in block.splitlines()]


@contextmanager
def own_package(folder: Path) -> Iterator[Path]:
    """The files of the page in ``folder``, which is the current one; afterwards Python has forgotten them."""
    for name, code in re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.M | re.S):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    (folder / "my_package" / "__init__.py").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [p for p in sys.path if p])
        try:
            yield folder
        finally:
            use_folders([])
            for name in [n for n in sys.modules if n.partition(".")[0] == "my_package"]:
                del sys.modules[name]


def write_pair(fixed: Path, moving: Path, seed: int = 1, size: int = 24) -> None:
    pair, _, _ = shapes_pair(seed, (size, size))
    for path, image in ((fixed, pair.fixed), (moving, pair.moving)):
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_image(path, image.data, image.grid)


def run_here(command: str, *more: str) -> tuple[int, str]:
    """Run a command as it is printed, with more words, in the current folder: its exit code, and what it said on the standard error."""
    words = [*shlex.split(command), *more]
    if words[0] == "rdmm":
        done = CliRunner().invoke(main, words[1:])
        return done.exit_code, done.stderr
    import eval.main
    import train.main

    program = {"train.py": train.main.main, "eval.py": eval.main.main}[words[1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[1:])
        try:
            program()
        except SystemExit as ended:
            return int(ended.code or 0), os.linesep
    return 0, ""
