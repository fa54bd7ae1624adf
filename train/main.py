"""``python train.py [KEY=VALUE ...]``: train networks, and write the table of learned against optimized.

First the affine network (affine=net), then, with it frozen, each of ``models``: settings by name, on top of the others. Each network's
files go to a folder of its name under Hydra's run folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig

from eval.main import Study
from eval.main import rows as studied
from eval.tables import write as write_table
from networks.model import Networks, load, made
from rdmm.config.build import build
from rdmm.config.compose import check, compose, quoted, share
from rdmm.config.trust import require_plain_yaml
from rdmm.data.training.pairs import TrainingData
from rdmm.io import write_atomically
from rdmm.kernels.available import set_threads
from rdmm.runtime.interrupt import interruptible, stop
from rdmm.runtime.resources import chosen_device
from rdmm.types import ConfigError, OutputError, RdmmError
from train.checkpoint import BEST, LAST, STATE, Folder, Progress, flattened
from train.log import Log
from train.losses import AffineObjective, DeformationObjective, Objective
from train.parallel import World, world
from train.trainer import Trainer, Training, identity

log = logging.getLogger(__name__)

REGISTER = ("dynamics", "smoother", "integrator", "intensity", "similarity", "similarity_weight", "barrier", "penalty", "free_weights")
"""Settings of a registration that go into the model file."""


@dataclass(frozen=True)
class Table:
    """The settings of ``table``: learned against optimized, on test pairs.

    Args:
        limit: test pairs; 0: no table.
        refine: L-BFGS iterations from where a network has led.
        optimized: settings of the optimization compared with.
        data: further data sets by name (rdmm.data.Cases).
        pictures: pairs that a figure is made of.
    """

    limit: int = 4
    refine: int = 5
    optimized: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    pictures: int = 1


@dataclass(frozen=True)
class Job:
    """One network's training, checked and ready."""

    name: str
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    trainer: Trainer


def jobs(config: Mapping[str, Any], overrides: list[str]) -> list[Job]:
    """The trainings that a configuration asks for, in order; everything is checked before data are read."""
    out = []
    net = config["affine"].get("_target_") == "networks.model.affine"
    if net:
        steps = min(config["trainer"]["max_steps"], config["affine_trainer"]["max_steps"])
        trainer = build(config["trainer"] | config["affine_trainer"] | {"max_steps": steps}, "affine_trainer")
        out.append(Job("affine", config, {"affine": config["network"]["affine"]}, trainer))
        build(config["network"]["affine_similarity"], "network.affine_similarity")
    for name, more in (config.get("models") or {_name(config): []}).items():
        if not isinstance(more, list):
            raise ConfigError(f"models.{name}: a list of settings is wanted, e.g. [dynamics=lddmm], not {more}")
        own = compose([*more, *overrides], "train") if more else config  # what is typed comes last, and wins
        _require_weights(own)
        settings = {
            "predictor": own["network"]["predictor"],
            "steps": own["network"]["steps"],
            "register": _thrifty({k: own[k] for k in REGISTER}),
            **({"affine": own["network"]["affine"]} if net else {}),
        }
        build(own["deform"]["problem"], "deform.problem")
        out.append(Job(name, own, settings, build(own["trainer"], "trainer")))
    for job in out:
        made(job.settings)
    return out


def _thrifty(node: Any) -> Any:
    """Settings whose integrators recompute what gradients need: how memory was spent in training is not for those who use the model."""
    if not isinstance(node, dict):
        return node
    return {k: True if k == "adjoint" else _thrifty(v) for k, v in node.items()}


def _require_weights(config: Mapping[str, Any]) -> None:
    """Pre-weights are predicted for RDMM and for nothing else, unless the configuration says otherwise."""
    node = config["network"]["predictor"]
    if node.get("weights") is None:
        node["weights"] = _name(config) == "rdmm"


def _name(config: Mapping[str, Any]) -> str:
    return str(config["dynamics"]["_target_"]).rpartition(".")[2].lower()


def objective(job: Job, networks: Networks) -> Objective:
    """What a job's networks are trained for."""
    node, loss = job.config["network"], job.config["loss"]
    dice = {k: loss[k] for k in ("dice_weight", "dice_labels")}
    if networks.predictor is None:
        assert networks.affine is not None
        similarity = build(node["affine_similarity"], "network.affine_similarity")
        return AffineObjective(networks.affine, similarity, loss["stretch_weight"], **dice)
    problem = build(job.config["deform"]["problem"], "deform.problem")
    weights = {k: loss[k] for k in ("inverse_consistency", "folding")}
    return DeformationObjective(networks.predictor, problem, networks.affine, node["steps"], **weights, **dice)


def train(config: Mapping[str, Any], overrides: list[str], out: Path, ranks: World) -> dict[str, Path]:
    """Train every job; the best model file of each, by name."""
    set_threads(config["threads"])
    device = chosen_device(config["device"])
    planned = jobs(config, overrides)
    build(config["table"] | {"_target_": "train.main.Table", "data": {}}, "table")
    data: TrainingData = build(config["data"], "data")
    _check_folders(planned, out, config["resume"], config["overwrite"])
    held_out = {part: len(data.held_out(part)) for part in ("validation", "test")}
    log.info("held-out pairs: %d for validation, %d for tests", held_out["validation"], held_out["test"])
    frozen: dict[str, Any] = {}
    written: dict[str, Path] = {}
    for job in planned:
        networks = _begun(job, frozen, out)
        progress = _trained(job, networks, data, out / job.name, ranks, device)
        if stop.is_set():
            return written
        ranks.total([0.0])  # all are there: the first one's files are complete
        if job.name == "affine":
            assert networks.affine is not None
            frozen = networks.affine.state_dict()
        best = f"best score {progress.best:.4f} at step {progress.best_step}" if progress.best is not None else "no validation"
        log.info("%s: %d steps, %d skipped, %s", job.name, progress.step, progress.skipped, best)
        written[job.name] = out / job.name / (BEST if (out / job.name / BEST).exists() else LAST)
    return written


def _begun(job: Job, frozen: Mapping[str, Any], out: Path) -> Networks:
    """A job's networks before its first step; the affine one, trained already, does not change any more."""
    torch.manual_seed(job.config["seed"])
    networks = made(job.settings)
    if job.name == "affine":
        return networks
    if networks.affine is not None:
        networks.affine.load_state_dict(frozen)
        networks.affine.requires_grad_(False)
    if job.config["start"]:
        _start(networks, str(job.config["start"]), out)
    return networks


def _trained(job: Job, networks: Networks, data: TrainingData, path: Path, ranks: World, device: torch.device) -> Progress:
    """Train a job's networks; their files are in the folder ``path``."""
    config = job.config
    path.mkdir(parents=True, exist_ok=True)
    same = flattened({"data": config["data"], "seed": config["seed"], "settings": dict(job.settings), "loss": config["loss"]})
    folder = Folder(path, job.settings, {**same, **identity(job.trainer), "processes": ranks.size})
    dynamics = None if job.name == "affine" else build(config["dynamics"], "dynamics")
    with Log(path if ranks.first else None, job.name, job.trainer.max_steps, dynamics).open() as logged:
        made_for = partial(objective, job)
        return Training(job.trainer, data, networks, made_for, folder, ranks, config["seed"], device, config["resume"], logged).run()


def _start(networks: Networks, source: str, out: Path) -> None:
    """The predictor's tensors from another model, wherever name and shape are the same.

    Raises:
        ConfigError: there are none.
    """
    path = out / source / BEST if (out / source / BEST).exists() else Path(source)
    own = networks.state_dict()
    fitting = {k: v for k, v in load(str(path)).state_dict().items() if k.startswith("predictor.") and k in own and own[k].shape == v.shape}
    if not fitting:
        raise ConfigError(f"start={source}: no tensor of {path} fits a network of this run")
    networks.load_state_dict(own | fitting)
    log.info("start: %d of %d tensors from %s", len(fitting), len(own), path)


def _check_folders(planned: list[Job], out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to train over another run, before anything is read; told to, take its files away, lest a later resume=true finds them."""
    for job in planned:
        there = out / job.name / STATE
        if there.exists() and not resume and not overwrite:
            raise OutputError(
                f"{there}: a run is there already; resume=true goes on with it, overwrite=true starts anew, or name another hydra.run.dir"
            )
        if not resume:
            for name in (STATE, BEST, LAST):
                (out / job.name / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class HeldOut:
    """Test pairs as cases of a study."""

    data: TrainingData

    def cases(self) -> Mapping[str, Any]:
        return self.data.held_out("test")


def table(config: Mapping[str, Any], models: Mapping[str, Path], out: Path) -> Path | None:
    """Learned, learned and refined, and optimized, by each model on the test pairs; ``table.md`` and ``table.csv``."""
    wanted: Table = build(config["table"] | {"_target_": "train.main.Table"}, "table")
    data: dict[str, Any] = {"test": HeldOut(build(config["data"], "data")), **wanted.data}
    if wanted.limit < 1 or not any(d.cases() for d in data.values()):
        return None
    methods: dict[str, list[str]] = {}
    for name, path in models.items():
        weights = f"weights={quoted(str(path))}"
        alone = ["initializer=zero", "optimizer=none", "stages=single"]
        if name == "affine":
            some = f"weights={quoted(str(list(models.values())[-1]))}"  # a deformation's, for its similarity
            methods |= {"affine-net": [some, *alone], "affine-opt": [some, *alone, "affine=opt"]}
            continue
        net = "affine" in models
        found, best = ([] if net else ["affine=none"]), ["affine=opt" if net else "affine=none"]
        methods[f"{name}-net"] = [weights, *found]
        methods[f"{name}-net+{wanted.refine}"] = [weights, *found, "optimizer=refine", f"optimizer.iterations=[{wanted.refine}]"]
        methods[f"{name}-opt"] = [weights, "initializer=zero", "optimizer=lbfgs", "stages=single", *best, *wanted.optimized]
    study = Study(data, methods, {}, limit=wanted.limit, pictures=wanted.pictures)
    rows = []
    for row in studied(study, [], config["device"], config["seed"], out):
        rows.append(row)
        write_table(rows, out)
    return out / "table.md"


@hydra.main(version_base=None, config_path=str(share() / "conf"), config_name="train")
def application(config: Any) -> None:
    from omegaconf import OmegaConf

    logging.getLogger("rdmm").setLevel(logging.WARNING)
    task = HydraConfig.get()
    plain: Any = OmegaConf.to_container(config, resolve=True)
    code = 0
    try:
        with interruptible() as seen, world(plain["trainer"]["timeout"]) as ranks:
            out = Path(ranks.same(task.runtime.output_dir))
            models = train(plain, list(task.overrides.task), out, ranks)
            if seen:
                code = 128 + seen["signal"]
            elif ranks.first:
                _finish(plain, models, out)
    except RdmmError as error:
        log.error("%s: %s", type(error).__name__, error)
        code = error.exit_code
    if code:
        sys.exit(code)


def _finish(config: Mapping[str, Any], models: Mapping[str, Path], out: Path) -> None:
    write_atomically(out / "models.json", json.dumps({k: str(p.relative_to(out)) for k, p in models.items()}, indent=1).encode())
    log.info("models: %s", ", ".join(map(str, models.values())))
    path = table(config, models, out)
    if path is not None:
        log.info("\n%s\n%s", path.read_text(), path)


def _given_folders(arguments: list[str]) -> list[Path]:
    """Folders of configurations besides conf/ (--config-dir, --config-path)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in (("--config-dir", "-cd"), ("--config-path", "-cp")):
        parser.add_argument(*names)
    return [Path(v) for v in vars(parser.parse_known_args(arguments)[0]).values() if v]


def main() -> None:
    """Settings are checked as ``rdmm register`` checks them, then Hydra takes over."""
    typed = [a for a in sys.argv[1:] if not a.startswith(("-", "hydra"))]
    try:
        for folder in _given_folders(sys.argv[1:]):
            require_plain_yaml(folder)
        check(typed, "train")
        if not {"-m", "--multirun"} & set(sys.argv[1:]):
            compose(typed, "train")
    except RdmmError as error:
        sys.stderr.write(f"train: {type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
    application()
