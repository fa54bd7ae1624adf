"""``python eval.py experiment=NAME [KEY=VALUE ...]``: every case of a data set by every method of an experiment.

An experiment (``conf/experiment``) is a set of settings for ``rdmm register``, and a ``study``: data sets, and methods, each
the settings by which it differs, or the warps of another tool. The tables (``table.csv``, ``.json``, ``.md``, ``.tex``), the figures and
``index.html`` go to Hydra's run folder; results by settings that other cases chose go to ``chosen/`` in it. Exit code 4: some rows are
failures. Exit code 3: all of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eval import figures, fronts, tables
from eval.choice import leave_one_out
from eval.study import Study, read_parts, table_rows
from rdmm.config.build import build
from rdmm.config.compose import compose
from rdmm.config.program import Ended, run_program
from rdmm.io import write_atomically
from rdmm.kernels.available import set_threads
from rdmm.report.html import render_study
from rdmm.runtime.occasionally import Occasionally
from rdmm.types import MAX_SEED, ConfigError, require_whole

log = logging.getLogger(__name__)

CHOSEN = "chosen"
"""Folder of the results by settings that other cases chose."""

PROGRAM_KEYS = ("study.", "device=", "threads=", "seed=", "hydra.", "hydra/")
"""Keys of this program, which are no settings of a method."""


def main() -> None:
    """The program eval.py."""
    run_program("eval", evaluate_and_show, check=compose)


def evaluate_and_show(config: dict[str, Any], overrides: list[str], folder: Path) -> Ended:
    """Run the study and log its table."""
    path = evaluate(config, overrides, folder)
    log.info("\n%s\n%s", path.read_text(), path)
    states = [row["status"] for row in json.loads((folder / "table.json").read_text())["rows"]]
    return Ended(3 if "done" not in states else 0 if set(states) == {"done"} else 4)


def evaluate(config: Mapping[str, Any], overrides: Sequence[str], folder: Path) -> Path:
    """Run the study of a composed configuration.

    Args:
        overrides: the typed KEY=VALUE; those of the registration apply to every method.
        folder: of the tables and figures.

    Returns:
        The path of ``table.md``.
    """
    if not isinstance(config["study"], Mapping):
        raise ConfigError(f"study must keep its entries; got {config['study']!r}: leave it out, or set study.KEY=VALUE")
    study: Study = build({"_target_": "eval.study.Study", **config["study"]}, "study")
    set_threads(config["threads"])
    seed = require_whole("seed", config["seed"], 0, MAX_SEED)
    base = [o for o in overrides if not o.lstrip("+~").startswith(PROGRAM_KEYS)]
    rows: list[tables.Row] = []
    baseline = None if study.families else study.baseline
    with Occasionally(lambda: tables.write_tables(rows, folder, baseline, study.printed.names)) as write:
        for row in read_parts(study.parts) or table_rows(study, base, config["device"], seed, folder):
            rows.append(row)
            write()
    judged = rows
    chosen = leave_one_out(rows, study.compared, study.choose_by) if study.choose_by else []
    if study.choose_by and not chosen:
        log.warning("study.choose_by: no case has %s, so nothing was chosen", study.choose_by)
    if chosen:
        (folder / CHOSEN).mkdir(exist_ok=True)
        tables.write_tables(chosen, folder / CHOSEN, study.baseline, study.printed.names)
        judged = chosen
    if study.front:
        fronts.write_fronts(rows, study, folder)
    figures.boxes(judged, folder, study.baseline, study.printed)
    write_index(rows, folder)
    return folder / "table.md"


def write_index(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """``index.html``: every case and method, worst first, each with a thumbnail and a link to the case's figure if there is one."""
    page = render_study(f"Study {folder.resolve().name}", [_index_row(row, folder) for row in rows])
    write_atomically(folder / "index.html", page.encode())


def _index_row(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A row of the table with the case first, the error apart from the status, and the link."""
    status, _, message = row["status"].partition(": ")
    rest = {k: v for k, v in row.items() if k not in ("case", "status")}
    figure = f"{row['case']}.png"
    link = {"link": quote(figure)} if (folder / figure).exists() else {}
    return {"case": row["case"], **rest, "status": status.split(":")[0], "message": message, **link}
