"""``python eval.py experiment=NAME [KEY=VALUE ...]``: every case of a data set by every method of an experiment.

An experiment (``conf/experiment``) is a set of settings for ``rdmm register``, and a ``study``: data sets, and methods, each
the settings by which it differs. The table (``table.csv``, ``table.md``) and the figures go to Hydra's run folder.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig

from eval import figures, tables
from rdmm import shapes
from rdmm.config import build, check, compose, share
from rdmm.data import Cases
from rdmm.inputs import Inputs, Shapes
from rdmm.registration import Registration, run
from rdmm.resources import set_threads
from rdmm.shapes import ShapeRegistration
from rdmm.types import ConfigError, RdmmError

log = logging.getLogger(__name__)
OWN = ("study.", "device=", "threads=", "seed=", "hydra.", "hydra/")


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        data: data sets by name.
        methods: settings of ``rdmm register`` by the method's name, on top of the experiment's.
        settings: further settings by the data set's name, for all methods.
        limit: cases of each data set, from the first; None: all.
        pictures: cases of each data set that a figure is made of.
    """

    data: Mapping[str, Cases]
    methods: Mapping[str, list[str]]
    settings: Mapping[str, list[str]]
    limit: int | None = None
    pictures: int = 2

    def __post_init__(self) -> None:
        if not self.data or not self.methods:
            raise ConfigError("nothing to compare: choose an experiment with a study, e.g. experiment=synthetic_optimized")
        unknown = set(self.settings) - set(self.data)
        if unknown:
            raise ConfigError(f"study.settings: there is no data set {sorted(unknown)[0]!r}; there are {', '.join(self.data)}")


def rows(study: Study, base: list[str], device: str, seed: int, out: Path) -> Iterator[dict[str, Any]]:
    """One row of the table for each case and method; a failure is a row that says why."""
    for name, data in study.data.items():
        settings = getattr(data, "settings", "register")
        configs = {m: compose([*base, *study.settings.get(name, []), *more], settings) for m, more in study.methods.items()}
        for config in configs.values():
            build(config["stages"], "stages")
        for number, (case, read) in enumerate(list(data.cases().items())[: study.limit]):
            inputs = read()
            done: dict[str, Registration | ShapeRegistration] = {}
            for method, config in configs.items():
                row, registration = _judged(inputs, config, device, seed)
                if registration is not None and number < study.pictures:
                    done[method] = registration
                log.info("%s %s: %s", case, method, tables.brief(row))
                yield {"data": name, "case": case, "method": method, **row}
            if done:
                figures.case(done, out / f"{case}.png")


def _judged(
    inputs: Inputs | Shapes, config: dict[str, Any], device: str, seed: int
) -> tuple[dict[str, Any], Registration | ShapeRegistration | None]:
    try:
        registration: Registration | ShapeRegistration
        if isinstance(inputs, Shapes):
            registration = shapes.run(inputs, config, device=device, seed=seed)
        else:
            registration = run(inputs, config, device=device, seed=seed)
        measures = {k: v for k, v in registration.metrics.items() if isinstance(v, int | float)}
        if isinstance(registration, Registration) and registration.dynamics is not None:
            measures["similarity"] = registration.energy["similarity"] / config["similarity_weight"]
        return {"status": registration.status, **measures, "seconds": registration.result.seconds["total"]}, registration
    except RdmmError as error:
        return {"status": f"{type(error).__name__}: {error}"}, None


def evaluate(config: Any, typed: list[str], out: Path) -> Path:
    """Run the study of a composed configuration; the path of the table."""
    study = build({"_target_": "eval.main.Study", **config["study"]}, "study")
    set_threads(config["threads"])
    base = [o for o in typed if not o.lstrip("+~").startswith(OWN)]
    table = []
    for row in rows(study, base, config["device"], config["seed"], out):
        table.append(row)
        tables.write(table, out)  # after each row: what is done is never lost
    figures.boxes(table, out)
    return out / "table.md"


@hydra.main(version_base=None, config_path=str(share() / "conf"), config_name="eval")
def application(config: Any) -> None:
    from omegaconf import OmegaConf

    logging.getLogger("rdmm").setLevel(logging.WARNING)
    task = HydraConfig.get()
    try:
        path = evaluate(OmegaConf.to_container(config, resolve=True), list(task.overrides.task), Path(task.runtime.output_dir))
    except RdmmError as error:
        log.error("%s: %s", type(error).__name__, error)
        sys.exit(error.exit_code)
    log.info("\n%s\n%s", path.read_text(), path)


def main() -> None:
    """Settings are checked as ``rdmm register`` checks them, then Hydra takes over."""
    try:
        check([a for a in sys.argv[1:] if not a.startswith(("-", "hydra"))], "eval")
    except RdmmError as error:
        sys.stderr.write(f"eval: {type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
    application()
