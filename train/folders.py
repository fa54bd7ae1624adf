"""The folder of a run: an earlier run in it is gone on with, moved aside or left alone. Nothing is ever deleted."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from rdmm.types import ConfigError, OutputError
from train.checkpoint import STATE

log = logging.getLogger(__name__)

RESULTS = ("models.json", "table.md", "table.csv", "table.json", "table.tex")
"""Files of a finished run beside the folders of its networks."""


def check_folder(out: Path, names: Sequence[str], *, resume: bool, overwrite: bool) -> None:
    """Check, before any data are read, that a run may write to the folder ``out``.

    Args:
        names: the networks; each has a folder of its name.

    Raises:
        OutputError: an earlier run is there and neither ``resume`` nor ``overwrite`` is set, or there is nothing to go on from.
        ConfigError: both are set.
    """
    if resume and overwrite:
        raise ConfigError("overwrite=true and resume=true: choose one; resume=true goes on with the run, overwrite=true starts anew")
    earlier = _earlier_files(out, names)
    if earlier and not resume and not overwrite:
        raise OutputError(
            f"{earlier[0]}: a run is there already; resume=true goes on with it, overwrite=true moves it aside and starts anew, "
            "or name another hydra.run.dir"
        )
    for folder in (out / name for name in names):
        models = sorted(folder.glob("*.safetensors"))
        if resume and models and not (folder / STATE).exists():
            raise OutputError(
                f"{models[0]}: its folder has no {STATE} to go on from; overwrite=true moves it aside and starts anew, "
                "or name another hydra.run.dir"
            )


def move_aside(out: Path, names: Sequence[str]) -> None:
    """Rename the files of an earlier run to NAME.1 (or .2, ...): all of them at once, so that no later run mixes two.

    Raises:
        OutputError: they cannot be renamed.
    """
    earlier = _earlier_files(out, names)
    if not earlier:
        return
    number = next(k for k in itertools.count(1) if not any((out / f"{name}.{k}").exists() for name in (*names, *RESULTS)))
    try:
        for path in earlier:
            path.rename(f"{path}.{number}")
    except OSError as error:
        raise OutputError(f"{out}: cannot move the earlier run aside: {error.strerror or error}") from error
    log.info("the earlier run is kept: %s", ", ".join(f"{path}.{number}" for path in earlier))


def _earlier_files(out: Path, names: Sequence[str]) -> list[Path]:
    """What an earlier run has left under the names that this run writes; empty folders do not count."""
    folders = [out / name for name in names if (out / name).exists()]
    return [p for p in folders if not p.is_dir() or any(p.iterdir())] + [out / name for name in RESULTS if (out / name).exists()]
