"""What train.py trains: the plan of each network's training, and its run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from networks.model import Networks, build_networks, load
from rdmm.config.build import build, build_as
from rdmm.config.compose import MODEL_KEYS, compose
from rdmm.data.training.pairs import TrainingData
from rdmm.io.files import require_file
from rdmm.kernels.available import set_threads
from rdmm.runtime.interrupt import stop
from rdmm.types import MAX_SEED, ConfigError, Tensor, require_whole
from train.checkpoint import BEST, LAST, STATE, Progress, RunFolder, flatten, stored_weights
from train.folders import check_folder, move_aside
from train.log import Log
from train.loggers import Run
from train.losses import AffineObjective, DeformationObjective, Objective
from train.parallel import World, local_device
from train.terms import LossTerm, WithTerms
from train.trainer import Trainer, Training, resume_settings

log = logging.getLogger(__name__)

AFFINE = "affine"
"""Name of the affine network's training, and of its folder."""

STATE_SUFFIX = Path(STATE).suffix
"""A file that ends so holds Adam's moments, too; a model file does not."""


@dataclass(frozen=True)
class TrainingPlan:
    """One network's training, checked and ready.

    Args:
        name: of the network, and of the folder of its files.
        config: the composed configuration of this training.
        settings: what the model file holds: how the networks are built, and the registration that they belong to.
        trainer: the settings of the training loop.
    """

    name: str
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    trainer: Trainer


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Args:
        path: the best model file.
        score: of its validation, larger is better: mean Dice if there are labels, else minus the similarity term. None: no validation.
    """

    path: Path
    score: float | None


def plan_trainings(config: Mapping[str, Any], overrides: Sequence[str]) -> list[TrainingPlan]:
    """The trainings that a configuration asks for, in order. Everything is checked before data are read.

    Args:
        config: the composed configuration (conf/train.yaml).
        overrides: the typed KEY=VALUE; they also apply to each of ``models``.

    Raises:
        ConfigError: a setting cannot be used.
    """
    plans = []
    with_affine = config["affine"].get("_target_") == "networks.model.affine"
    if with_affine:
        plans.append(_plan_affine(config))
    for name, settings in (config.get("models") or {_dynamics_name(config): []}).items():
        if not isinstance(settings, list):
            raise ConfigError(f"models.{name} must be a list of settings, e.g. [dynamics=lddmm]; got {settings}")
        own = compose([*settings, *overrides], "train") if settings else config  # typed settings come last, so they win
        plans.append(_plan_deformation(name, own, with_affine))
    for plan in plans:
        plan.trainer.make_optimizer([*build_networks(plan.settings).parameters()])
    return plans


def _plan_affine(config: Mapping[str, Any]) -> TrainingPlan:
    steps = min(config["trainer"]["max_steps"], config["affine_trainer"]["max_steps"])
    trainer = build(config["trainer"] | config["affine_trainer"] | {"max_steps": steps}, "affine_trainer")
    build(config["network"]["affine_similarity"], "network.affine_similarity")
    return TrainingPlan(AFFINE, config, {AFFINE: config["network"][AFFINE]}, trainer)


def _plan_deformation(name: str, config: Mapping[str, Any], with_affine: bool) -> TrainingPlan:
    """The training of a predictor, whose pairs an affine network aligns if ``with_affine``."""
    _decide_weights(config)
    settings = {
        "predictor": config["network"]["predictor"],
        "steps": config["network"]["steps"],
        "register": _with_adjoint({k: config[k] for k in MODEL_KEYS}),
    }
    if with_affine:
        settings[AFFINE] = config["network"][AFFINE]
    build(config["deform"]["problem"], "deform.problem")
    build_terms(config)
    return TrainingPlan(name, config, settings, build(config["trainer"], "trainer"))


def _with_adjoint(node: Any) -> Any:
    """Settings with adjoint=true, as saved models have them: plain backpropagation is a choice of training."""
    if not isinstance(node, dict):
        return node
    return {k: True if k == "adjoint" else _with_adjoint(v) for k, v in node.items()}


def _decide_weights(config: Mapping[str, Any]) -> None:
    """Set whether pre-weights are predicted where the configuration leaves it open (null): where the dynamics uses them."""
    node = config["network"]["predictor"]
    if "weights" in node and node["weights"] is None:
        node["weights"] = build(config["dynamics"], "dynamics").has_preweights


def _dynamics_name(config: Mapping[str, Any]) -> str:
    return str(config["dynamics"]["_target_"]).rpartition(".")[2].lower()


def build_objective(plan: TrainingPlan, networks: Networks) -> Objective:
    """The objective that a plan's networks are trained for."""
    node, loss = plan.config["network"], plan.config["loss"]
    dice = {k: loss[k] for k in ("dice_weight", "dice_labels")}
    if networks.predictor is None:
        assert networks.affine is not None
        similarity = build(node["affine_similarity"], "network.affine_similarity")
        return AffineObjective(networks.affine, similarity, loss["stretch_weight"], **dice)
    problem = build(plan.config["deform"]["problem"], "deform.problem")
    weights = {k: loss[k] for k in ("inverse_consistency", "consistency_unit", "folding")}
    objective = DeformationObjective(networks.predictor, problem, networks.affine, node["steps"], **weights, **dice)
    terms = build_terms(plan.config)
    return WithTerms(objective, terms) if terms else objective


def build_terms(config: Mapping[str, Any]) -> Mapping[str, LossTerm]:
    """The further terms of the deformation's loss.

    Raises:
        ConfigError: one of them cannot be called.
    """
    terms: Mapping[str, LossTerm] = build(config["loss"]["terms"], "loss.terms")
    if not isinstance(terms, dict) or not all(map(callable, terms.values())):
        raise ConfigError(f"loss.terms must be terms by name, each with the _target_ of a class whose objects can be called; got {terms!r}")
    return terms


def train(config: Mapping[str, Any], overrides: Sequence[str], out: Path, ranks: World) -> dict[str, Trained]:
    """Run every planned training.

    Args:
        out: the folder of the run; each network's files go to a folder of its name in it.
        ranks: the processes of the run.

    Returns:
        The best model of each network, by name, in the order of training. After an interruption: of those whose training was complete.
    """
    set_threads(config["threads"])
    require_whole("seed", config["seed"], 0, MAX_SEED)
    device = local_device(config["device"])
    plans = plan_trainings(config, overrides)
    names = [plan.name for plan in plans]
    check_folder(out, names, resume=config["resume"], overwrite=config["overwrite"])
    _check_starts(plans, out)
    build(config["logger"], "logger")  # a library that is missing is found before data are read
    data: TrainingData = build_as(TrainingData, config["data"], "data")
    log.info("%s", data.describe())
    ranks.total([0.0])  # all processes have checked everything: from here on the first one writes
    if ranks.first and config["overwrite"]:
        move_aside(out, names)
    affine_tensors: dict[str, Any] = {}
    models: dict[str, Trained] = {}
    for plan in plans:
        networks = _initial_networks(plan, affine_tensors, out)
        progress, model = _train_networks(plan, networks, data, out, ranks, device)
        if stop.is_set():
            return models
        ranks.total([0.0])  # wait for all processes: then the files of the first one are complete
        if plan.name == AFFINE:
            assert model.affine is not None
            affine_tensors = model.affine.state_dict()
        best = f"best score {progress.best:.4f} at step {progress.best_step}" if progress.best is not None else "no validation"
        log.info("%s: %d steps, %d skipped, %s", plan.name, progress.step, progress.skipped, best)
        folder = out / plan.name
        models[plan.name] = Trained(folder / (BEST if (folder / BEST).exists() else LAST), progress.best)
    return models


def _initial_networks(plan: TrainingPlan, affine_tensors: Mapping[str, Any], out: Path) -> Networks:
    """A plan's networks before their first step. The affine network beside a predictor is trained already and stays frozen."""
    torch.manual_seed(plan.config["seed"])
    networks = build_networks(plan.settings)
    if plan.name != AFFINE and networks.affine is not None:
        networks.affine.load_state_dict(affine_tensors)
        networks.affine.requires_grad_(False)
    start = _start_of(plan, out)
    if start is not None:
        _copy_fitting(networks, start, plan)
    return networks


def _settings_of_weights(plan: TrainingPlan) -> dict[str, Any]:
    """The settings that decide the weights, beside those of the trainer that are numbers, as dotted keys. A cache decides nothing."""
    config = plan.config
    trainer = config["trainer"] | (config["affine_trainer"] if plan.name == AFFINE else {})
    nodes = {k: config[k] for k in ("data", "seed", "loss")} | {"settings": dict(plan.settings)}
    nodes |= {"trainer": {k: trainer[k] for k in ("optimizer", "schedule")}}
    return {key: value for key, value in flatten(nodes).items() if key.rpartition(".")[2] != "cache"}


def _train_networks(
    plan: TrainingPlan, networks: Networks, data: TrainingData, out: Path, ranks: World, device: torch.device
) -> tuple[Progress, Networks]:
    """Train a plan's networks; their files go to the folder of the plan's name in ``out``. Returns the networks that were saved last."""
    config, path, start = plan.config, out / plan.name, _start_of(plan, out)
    path.mkdir(parents=True, exist_ok=True)
    settings = _settings_of_weights(plan)
    folder = RunFolder(path, plan.settings, {**settings, **resume_settings(plan.trainer), "processes": ranks.size})
    dynamics = None if plan.name == AFFINE else build(config["dynamics"], "dynamics")
    run = Run(path, plan.name, folder.identity, yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False)) if ranks.first else None
    loggers = list(build(config["logger"], "logger").values()) if ranks.first else []
    logged = Log(plan.name, plan.trainer.max_steps, run, loggers, dynamics)
    moments = start if start is not None and start.suffix == STATE_SUFFIX and plan.name != AFFINE else None
    make = partial(build_objective, plan)
    training = Training(plan.trainer, data, networks, make, folder, ranks, config["seed"], device, config["resume"], logged, moments)
    return training.run(), training.model


def _check_starts(plans: Sequence[TrainingPlan], out: Path) -> None:
    """Raise InputError if ``start`` of a network is neither an earlier network of this run nor a file that can be read."""
    for number, plan in enumerate(plans):
        name = plan.config["start"]
        if name and name not in [p.name for p in plans[:number]] and not (out / name / BEST).exists():
            _given_tensors(require_file(name))


def _start_of(plan: TrainingPlan, out: Path) -> Path | None:
    """The file whose tensors a network starts from. The affine network starts from files only, not from networks of its own run."""
    name = plan.config["start"]
    if not name:
        return None
    earlier = out / name / BEST
    if earlier.exists():
        return None if plan.name == AFFINE else earlier
    return Path(name)


def _given_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a model file, or of the state.pt of a run. Raises InputError."""
    return stored_weights(path) if path.suffix == STATE_SUFFIX else load(str(path)).state_dict()


def _copy_fitting(networks: Networks, path: Path, plan: TrainingPlan) -> None:
    """Copy the tensors of the network to be trained from a file wherever name and shape are the same.

    Raises:
        ConfigError: no tensor fits a predictor.
    """
    part = "affine." if plan.name == AFFINE else "predictor."
    own = networks.state_dict()
    given = {k: v for k, v in _given_tensors(path).items() if k.startswith(part)}
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fitting and plan.name != AFFINE:
        raise ConfigError(
            f"start={plan.config['start']}: no tensor of {path} fits a network of this run; give a model with the same backbone"
        )
    networks.load_state_dict(own | fitting)
    log.info("%s starts from %d of %d tensors of %s", plan.name, len(fitting), sum(k.startswith(part) for k in own), path)
