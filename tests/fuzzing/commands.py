"""Command lines: every command, with options drawn from its own parameters; and names that no file should have."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.testing import CliRunner

from fuzzing.case import PLAIN, WORDS, Case, Rng, chance, pick
from fuzzing.images import draw_image, draw_labels
from fuzzing.lists import draw_landmarks, draw_pairs, draw_points
from fuzzing.settings import draw_model, word
from fuzzing.shapes import draw_vtk
from fuzzing.transforms import itk_text, warp
from rdmm import Grid, io
from rdmm.cli import main
from rdmm.io.files import check_output, require_file
from rdmm.io.nifti import is_image_name
from rdmm.types import RdmmError

NAMES: tuple[str, ...] = (
    "",
    " ",
    ".",
    "..",
    "/",
    "-",
    "~",
    "x" * 300,
    "a/" * 3000,
    "a\0b",
    "\udcff.nii",
    "a\nb.nii",
    "\x1b[2J.nii",
    "=1+1.csv",
)
NAMES += (
    "../x.nii",
    "é.nii.gz",
    "a b.nii",
    "x.mha",
    "x.png",
    "[a.txt,1]",
    "[a.txt,x]",
    "[,1]",
    "{x}.nii",
    "%s.nii",
    "/dev/null",
    "/dev/zero",
)
NAMES += ("no/such.nii",)
TEXTS = ("1,1", "inf,1", "1", "1/2", "2/1", "0/0", "x/y", "cpu", "cuda", "cuda:9", "itk", "fsl", "lta", "time=4", "time=x", "a")

OUTPUTS = ("out.nii.gz", "out.nii", "out.csv", "out.h5", "out.txt", "out/", "out", "OUT.NII.GZ")


@functools.cache
def sound_files() -> dict[str, bytes]:
    """Files that every command can use, by name."""
    with tempfile.TemporaryDirectory() as name:
        folder, grid = Path(name), Grid.unit((5, 4, 6))
        generator = torch.Generator().manual_seed(0)
        for file in ("f.nii.gz", "m.nii.gz"):
            io.write_image(folder / file, torch.rand(1, 1, *grid.shape, generator=generator), grid)
        io.write_image(folder / "l.nii.gz", (torch.rand(1, 1, *grid.shape, generator=generator) * 3).floor(), grid, integer=True)
        io.write_warp(folder / "w.nii.gz", 0.01 * torch.rand(1, 3, *grid.shape, generator=generator), grid)
        io.write_affine(folder / "a.mat", np.eye(4))
        io.write_mesh(folder / "s.vtk", np.random.default_rng(0).random((9, 3)), np.array([[0, 1, 2], [3, 4, 5]]))
        (folder / "p.csv").write_text("x,y,z\n1,2,3\n")
        (folder / "q.csv").write_text("fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z\n1,2,3,1,2,3\n")
        (folder / "pairs.csv").write_text("id,fixed,moving\np,f.nii.gz,m.nii.gz\n")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def hostile_files(rng: Rng) -> dict[str, bytes]:
    """One hostile file, of any kind."""
    if chance(rng, 0.3):
        return dict([pick(rng, (itk_text, warp))(rng)])
    return dict(pick(rng, (draw_image, draw_labels, draw_landmarks, draw_pairs, draw_points, draw_model, draw_vtk))(rng).files)


@functools.cache
def commands() -> dict[str, click.Command]:
    """All commands. ``demo`` is left out: it takes nothing but a name."""
    return {name: command for name, command in main.commands.items() if name != "demo"}


WARPS, LABELS = ("w.nii.gz", "a.mat"), ("l.nii.gz",)
LIKELY: dict[str, tuple[str, ...]] = {"csv": ("p.csv",), "pairs": ("pairs.csv",), "names": WARPS, "transform": WARPS, "warp": WARPS[:1]}
LIKELY |= {"source": WARPS, "landmarks": ("q.csv",), "labels": LABELS, "run": ("f.nii.gz", "."), "file": WARPS, "initial": WARPS}
LIKELY |= {"arguments": ("f.nii.gz", "m.nii.gz", "s.vtk"), "form": ("itk", "fsl", "learn2reg"), "source_form": ("itk", "fsl", "ras")}
LIKELY |= dict.fromkeys(("fixed_labels", "moving_labels", "fixed_mask", "moving_mask", "regions"), LABELS)
LIKELY |= {"shard": ("1/1", "1/2"), "device": ("cpu",), "weights": ("1,1",), "slurm": ("time=4",), "root": (".",)}
LIKELY |= dict.fromkeys(("fixed_keypoints", "moving_keypoints"), ("p.csv",))


def value(rng: Rng, parameter: click.Parameter, names: list[str]) -> str:
    """What is typed for a parameter: most often what it wants."""
    name = str(parameter.name)
    if chance(rng, 0.12):
        return str(pick(rng, (*names, *NAMES, *WORDS, *TEXTS, *map(str, PLAIN))))
    if isinstance(parameter.type, click.Choice):
        return str(pick(rng, tuple(parameter.type.choices)))
    if isinstance(parameter.type, click.types.IntRange | click.types.FloatRange):
        return pick(rng, ("0", "1", "2", "0.5", "3"))
    if name == "overrides":
        return word(rng, "register")
    return pick(rng, OUTPUTS if name == "out" else LIKELY.get(name, ("f.nii.gz", "m.nii.gz", "l.nii.gz")))


def words(rng: Rng, name: str, command: click.Command, names: list[str]) -> list[str]:
    """A command line. Registrations are only checked, not run."""
    out: list[str] = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            number = pick(rng, (2, 2, 2, 1, 3)) if parameter.nargs < 0 else 1
            number = pick(rng, (0, 0, 0, 1)) if parameter.name == "overrides" else number
            out += [value(rng, parameter, names) for _ in range(number)]
        elif parameter.name in ("debug", "as_json") or (isinstance(parameter, click.Option) and parameter.is_flag):
            out += [parameter.opts[-1]] if parameter.name != "debug" and chance(rng, 0.15) else []
        elif chance(rng, 0.95 if parameter.required else 0.15):
            repeated = pick(rng, (1, 1, 2)) if isinstance(parameter, click.Option) and parameter.multiple else 1
            for _ in range(repeated):
                out += [parameter.opts[-1], value(rng, parameter, names)]
    if chance(rng, 0.03):
        out.insert(int(rng.integers(len(out) + 1)), pick(rng, ("--no-such", "-", "--", "-o", *WORDS)))
    return [name, *out, *(["--dry-run"] if name in ("register", "batch") and "--dry-run" not in out else [])]


def draw_command(rng: Rng) -> Case:
    """A command line in a folder of sound files, and one hostile one."""
    hostile = hostile_files(rng) if chance(rng, 0.5) else {}
    files = sound_files() | hostile
    name = pick(rng, tuple(commands()))
    line = words(rng, name, commands()[name], [*files, *list(hostile) * 10])

    def run(folder: Path) -> None:
        here, level = os.getcwd(), logging.getLogger("rdmm").level
        os.chdir(folder)
        try:
            outcome = CliRunner().invoke(main, line)
        finally:
            os.chdir(here)
            logging.getLogger("rdmm").setLevel(level)
        if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
            raise outcome.exception
        said = (outcome.stderr.strip() or outcome.stdout.strip()).splitlines()  # a dry run prints what it found on stdout
        assert outcome.exit_code in (0, 2, 3, 5), f"code {outcome.exit_code}: {said[-1:]}"
        if outcome.exit_code:
            assert said, "nothing is said"
            raise RdmmError(said[-1])
        for path in folder.iterdir():
            if path.name not in files and is_image_name(path.name):
                assert all(n > 0 for n in io.read_grid(path).shape), "a result that cannot be read"

    return Case(run, files, " ".join(line)[:300], longest=10**4)


def draw_name(rng: Rng) -> Case:
    """A name for a file that is read, and for one that is written."""
    name = pick(rng, (*NAMES, *WORDS, *OUTPUTS)) + pick(rng, ("", "", ".nii", ".nii.gz", "/"))
    name = pick(rng, ("", "", "x/", "../")) + name if not name.startswith("/") else name

    def run(folder: Path) -> None:
        place, refusals = f"{folder}/{name}", []
        for act in (functools.partial(check_output, overwrite=False), write_small, require_file):
            try:
                act(place)
            except RdmmError as error:
                refusals.append(error)
        for error in refusals:
            raise error

    return Case(run, {}, repr(name)[:100], longest=10**4)


def write_small(path: str) -> None:
    io.write_image(path, torch.ones(1, 1, 4, 4), Grid.unit((4, 4)))


GENERATORS: dict[str, Any] = {"command": draw_command, "name": draw_name}
