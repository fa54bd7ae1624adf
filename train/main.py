"""``python train.py [KEY=VALUE ...]``: train networks, and write the table of learned against optimized.

First the affine network (affine=net), then, with it frozen, each of ``models``: settings by name, on top of the others. Each network's
files go to a folder of its name under Hydra's run folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdmm.config.compose import compose
from rdmm.config.program import Ended, run_program
from rdmm.io import Outputs, write_atomically
from rdmm.runtime.interrupt import interruptible
from train.parallel import local_device, world
from train.plan import train
from train.table import build_table, compare_on_test_pairs

log = logging.getLogger(__name__)


def main() -> None:
    """The program train.py."""
    run_program("train", train_and_compare, check=compose)


def train_and_compare(config: dict[str, Any], overrides: list[str], folder: Path) -> Ended:
    """Train, then write the table. After Ctrl-C or SIGTERM, the training's state is saved and there is no table.

    The value is the score of the network that was trained last: mean Dice of the validation pairs, or minus their similarity.
    """
    build_table({**config["table"], "data": {}})  # wrong settings are found before the training; its data sets are read at the end
    with (
        interruptible() as interruption,
        world(config["trainer"]["timeout"], local_device(config["device"])) as ranks,
        contextlib.ExitStack() as stack,
    ):
        out = Path(ranks.broadcast(str(folder)))
        if ranks.first:
            stack.enter_context(Outputs(os.path.join(out, "")).locked())
        models = train(config, overrides, out, ranks)
        if interruption:
            return Ended(128 + int(interruption["signal"]))
        if ranks.first:
            _write_results(config, {name: model.path for name, model in models.items()}, out)
    return Ended(value=[*models.values()][-1].score)


def _write_results(config: Mapping[str, Any], models: Mapping[str, Path], out: Path) -> None:
    write_atomically(out / "models.json", json.dumps({k: str(p.relative_to(out)) for k, p in models.items()}, indent=1).encode())
    log.info("models: %s", ", ".join(map(str, models.values())))
    path = compare_on_test_pairs(config, models, out)
    if path is not None:
        log.info("\n%s\n%s", path.read_text(), path)
