"""The training loop.

Step t depends only on the state before it and on (seed, t), so resuming from a checkpoint reproduces the uninterrupted run.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Adam

from networks.model import Networks
from rdmm.data.inputs import Inputs
from rdmm.data.training.pairs import TrainingData
from rdmm.data.training.splits import seeded_generator
from rdmm.runtime.interrupt import stop
from rdmm.types import ConfigError, DivergenceError, ResourceError
from train.average import AveragedModel, average_of
from train.batches import both_ways, stream, to_device
from train.checkpoint import BEST, LAST, Progress, RunFolder, load_moments
from train.log import Log
from train.losses import Objective, Outcome, Terms, evaluate
from train.parallel import World

log = logging.getLogger(__name__)

GRADIENT_NORM_DECAY = 0.02
"""Weight of a new gradient's norm in the running mean of the norms."""

MAX_SKIPPED_IN_A_ROW = 20
"""A run ends with an error after this many steps in a row without a finite gradient."""


class Schedule(Protocol):
    """The factor of the learning rate at ``step`` of ``steps`` steps, counted from 0."""

    def __call__(self, step: int, steps: int) -> float: ...


@dataclass(frozen=True)
class Trainer:
    """How a network is trained.

    Args:
        max_steps: steps of the optimizer.
        batch: pairs in memory at a time, on each process.
        accumulate: batches per step; their gradients are averaged.
        learning_rate, warmup, floor: the rate rises to ``learning_rate`` over ``warmup`` steps, then falls along a cosine to
            ``floor`` times ``learning_rate``.
        optimizer: makes the optimizer of parameters, at a learning rate: a class of ``torch.optim``, or one that derives from its.
        schedule: what the learning rate is multiplied by after the warm-up, instead of the cosine.
        ema: decay of the running mean of the weights; 0: none. The mean is validated and saved in every model file.
        clip: largest norm of a gradient, relative to the running mean of the norms. A relative bound suits energies of any scale. It
            keeps one pair that almost diverges from undoing earlier steps.
        both_directions: also train on each pair with its images swapped.
        epoch: number of steps that the penalty's schedule counts as one epoch.
        validate_every, checkpoint_every, log_every, picture_every: intervals, in steps.
        keep: also write a numbered model file at each checkpoint.
        patience: end the run after this many validations without a better score; 0: never.
        workers: number of processes that read data.
        amp: convolutions in bfloat16. Shooting, smoothing and similarities stay in float32.
        timeout: seconds that one process of a distributed run waits for another.
    """

    max_steps: int = 10000
    batch: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int = 100
    floor: float = 0.01
    optimizer: Callable[..., torch.optim.Optimizer] = Adam
    schedule: Schedule | None = None
    clip: float = 2.0
    ema: float = 0.0
    both_directions: bool = True
    epoch: int = 100
    validate_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 20
    picture_every: int = 1000
    keep: bool = False
    patience: int = 0
    workers: int = 0
    amp: bool = False
    timeout: float = 600.0

    def __post_init__(self) -> None:
        positive = ("max_steps", "batch", "accumulate", "epoch", "validate_every", "checkpoint_every", "log_every", "picture_every")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name} must be at least 1, not {getattr(self, name)}")
        if not (self.learning_rate > 0 and self.clip > 0 and self.timeout > 0 and 0 <= self.floor <= 1):
            raise ConfigError("trainer: learning_rate, clip and timeout must be > 0 and floor in [0, 1]")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"trainer.ema must be at least 0 and below 1, e.g. 0.999; got {self.ema}")
        if min(self.warmup, self.patience, self.workers) < 0:
            raise ConfigError("trainer: warmup, patience and workers must be >= 0")
        if "lr" in getattr(self.optimizer, "keywords", {}):
            raise ConfigError("trainer.optimizer.lr: the learning rate is trainer.learning_rate; leave lr out")
        for step in (0, self.warmup, self.max_steps - 1):
            rate = self.rate(step)
            if not (isinstance(rate, float) and 0 <= rate < math.inf):
                raise ConfigError(f"trainer.schedule: the learning rate of step {step} is {rate!r}; finite numbers >= 0 are wanted")

    def rate(self, step: int, begin: int = 0) -> float:
        """Learning rate of a step, counted from 0. ``begin``: the step at which the schedule began (Progress)."""
        taken = step - begin
        if taken < self.warmup:
            return self.learning_rate * (taken + 1) / self.warmup
        whole = max(1, self.max_steps - begin - self.warmup)
        if self.schedule is not None:
            return self.learning_rate * self.schedule(taken - self.warmup, whole)
        fraction = (taken - self.warmup) / whole
        return self.learning_rate * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0))))

    def make_optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of ``parameters``.

        Raises:
            ConfigError: it cannot be made, or its step needs a closure, as that of torch.optim.LBFGS does.
        """
        try:
            made = self.optimizer(parameters, lr=self.learning_rate)
        except Exception as error:  # a class of anyone
            raise ConfigError(f"trainer.optimizer: {type(error).__name__}: {' '.join(str(error).split())}") from error
        if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
            found = type(made).__name__
            raise ConfigError(f"trainer.optimizer: a torch.optim.Optimizer whose step needs no closure is wanted, not {found}")
        return made


RESUME_KEYS = (
    "max_steps",
    "batch",
    "accumulate",
    "learning_rate",
    "warmup",
    "floor",
    "clip",
    "ema",
    "both_directions",
    "epoch",
    "validate_every",
    "patience",
    "amp",
)
"""Settings of the trainer that a resumed run must share. The others do not change the weights."""


def resume_settings(trainer: Trainer) -> dict[str, Any]:
    """The settings of RESUME_KEYS, by their dotted keys."""
    return {f"trainer.{k}": v for k, v in asdict(trainer).items() if k in RESUME_KEYS}


@dataclass(eq=False)
class Training:
    """One network's training.

    Args:
        make: makes the objective of networks.
        folder: the run's files.
        resume: go on from the folder's state if there is one.
        moments: the state.pt of another run, whose moments of Adam this run starts from.
    """

    trainer: Trainer
    data: TrainingData
    networks: Networks
    make: Callable[[Networks], Objective]
    folder: RunFolder
    world: World
    seed: int
    device: torch.device
    resume: bool
    log: Log
    moments: Path | None = None

    def run(self) -> Progress:
        """Train to the last step, or until the run is interrupted.

        Raises:
            DivergenceError: MAX_SKIPPED_IN_A_ROW steps in a row had no finite gradient.
            ResourceError: out of memory.
        """
        self.networks.to(self.device)
        objective = self.make(self.networks)
        parameters = [p for p in objective.trained.parameters() if p.requires_grad]
        optimizer = self.trainer.make_optimizer(parameters)
        progress = self._restore(optimizer)
        judged = objective if self.averaged is None else self.make(self.model)
        validation = list(self.data.held_out("validation").values())[self.world.rank :: self.world.size]
        with self.log.open(progress.step), _memory_errors(progress):
            if progress.step % self.trainer.validate_every == 0 and progress.validated < progress.step:  # interrupted before the validation
                self._validate(judged, validation, progress)
            for batches in self.log.timed(self._batches(progress)):
                stopped = self._step(objective, optimizer, parameters, batches, progress)
                done = progress.step == self.trainer.max_steps
                if not stopped and (done or progress.step % self.trainer.validate_every == 0):
                    self._validate(judged, validation, progress)
                last = done or stopped or 0 < self.trainer.patience <= progress.stale
                if self.world.first and (last or progress.step % self.trainer.checkpoint_every == 0):
                    self._save(optimizer, progress, self.trainer.keep)
                if last:
                    break
        return progress

    @cached_property
    def averaged(self) -> AveragedModel | None:
        """The running mean of the networks' weights, if the trainer wants one."""
        return average_of(self.networks, self.trainer.ema) if self.trainer.ema else None

    @property
    def model(self) -> Networks:
        """The networks that are validated and saved."""
        if self.averaged is None:
            return self.networks
        mean = self.averaged.module
        assert isinstance(mean, Networks)
        return mean

    def _save(self, optimizer: torch.optim.Optimizer, progress: Progress, numbered: bool) -> None:
        """Write a numbered model file if ``numbered``, the state and the last model."""
        if numbered:
            self.folder.save_model(f"step_{progress.step:07d}.safetensors", self.model, progress)
        self.folder.save_state(self.networks, optimizer, progress, self.averaged)
        self.folder.save_model(LAST, self.model, progress)

    def _restore(self, optimizer: torch.optim.Optimizer) -> Progress:
        found = self.folder.restore(self.networks, optimizer, self.averaged) if self.resume else None
        if found is None:
            progress = Progress()
            if self.moments is not None:
                load_moments(self.moments, self.networks, optimizer)
            if self.world.first:
                self.folder.save_state(self.networks, optimizer, progress, self.averaged)
            return progress
        if self.world.first:
            self._save(optimizer, found, False)
        log.info("going on from step %d", found.step)
        return found

    def _batches(self, progress: Progress) -> Iterator[tuple[Inputs, ...]]:
        """This process's part of each remaining step: ``accumulate`` batches."""
        b, a, w = self.trainer.batch, self.trainer.accumulate, self.world
        steps = range(progress.step, self.trainer.max_steps)
        if 0 < self.trainer.patience <= progress.stale:
            steps = range(0)
        numbers = [[((step * w.size + w.rank) * a + k) * b + i for i in range(b)] for step in steps for k in range(a)]
        batches = stream(self.data, numbers, self.trainer.workers) if numbers else iter(())
        return zip(*[batches] * a, strict=True)

    def _step(
        self, objective: Objective, optimizer: Any, parameters: list[nn.Parameter], batches: Sequence[Inputs], progress: Progress
    ) -> bool:
        """Take one step of the optimizer; whether the run was asked to stop."""
        t = self.trainer
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = t.rate(progress.step, progress.begin)
        there = [self._prepared(batch) for batch in batches]
        outcome = self._backward(objective, there, progress)
        good = outcome is not None and bool(torch.isfinite(outcome.loss)) and _finite(parameters)
        norm = math.nan
        ranks, stopped = self.world.mean_gradients(parameters, good, stop.is_set())
        if ranks:
            largest = t.clip * progress.length or math.inf
            norm = float(nn.utils.clip_grad_norm_(parameters, largest))
            progress.length += (min(norm, largest) - progress.length) * (GRADIENT_NORM_DECAY if progress.length else 1.0)
            optimizer.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.networks)
            progress.skipped_in_a_row = 0
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
            if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise DivergenceError(f"{MAX_SKIPPED_IN_A_ROW} steps in a row had no finite gradient: lower trainer.learning_rate")
        progress.step += 1
        if outcome is not None:
            self.log.log_step(progress, t, outcome, norm, there[-1])
        return stopped

    def _prepared(self, batch: Inputs) -> Inputs:
        """The batch on the device, where it is doubled if both directions are trained on."""
        there = to_device(batch, self.device)
        return both_ways(there) if self.trainer.both_directions else there

    def _backward(self, objective: Objective, batches: Sequence[Inputs], progress: Progress) -> Outcome | None:
        """The mean gradients of a step's batches, added to the parameters; the last outcome, with the mean loss and terms.

        None: a pair diverged.
        """
        t = self.trainer
        draw = int(seeded_generator(self.seed, 5, progress.step, self.world.rank).integers(2**62))
        outcomes = []
        try:
            for batch in batches:
                torch.manual_seed(draw)
                with torch.autocast(self.device.type, torch.bfloat16) if t.amp else contextlib.nullcontext():
                    outcome = objective(batch, progress.step // t.epoch, draw, t.both_directions)
                (outcome.loss / len(batches)).backward()
                outcomes.append(replace(outcome, loss=outcome.loss.detach()))
        except DivergenceError as error:
            log.warning("step %d: %s", progress.step + 1, error)
            return None
        loss = torch.stack([outcome.loss for outcome in outcomes]).mean()
        return replace(outcomes[-1], loss=loss, terms=_mean_terms([outcome.terms for outcome in outcomes]))

    def _validate(self, objective: Objective, cases: list[Callable[[], Inputs]], progress: Progress) -> None:
        """Evaluate the held-out pairs, and save the model if it is the best so far. Without held-out pairs, the last model is the best."""
        self.model.eval()
        progress.validated = progress.step
        sums, counts = dict[str, float](), dict[str, int]()
        shown = None
        for case in cases:
            sample = to_device(case(), self.device)
            terms, outcome = evaluate(objective, sample, progress.step // self.trainer.epoch)
            shown = shown or (sample, outcome)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + 1
        self.model.train()
        names = self.world.union(sums)
        numbers = self.world.total([*(sums.get(n, 0.0) for n in names), *(float(counts.get(n, 0)) for n in names), float(len(cases))])
        means = {n: x / k for n, x, k in zip(names, numbers, numbers[len(names) :], strict=False)}  # over the pairs that have the term
        score = _score(means) if numbers[-1] else float(progress.step)
        if progress.best is None or score > progress.best:
            progress.best, progress.best_step, progress.stale = score, progress.step, 0
            if self.world.first:
                self.folder.save_model(BEST, self.model, progress)
        else:
            progress.stale += 1
        self.log.log_validation(progress, means, score, shown)


@contextlib.contextmanager
def _memory_errors(progress: Progress) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        raise ResourceError(
            f"out of memory at step {progress.step + 1} (peak {peak:.1f} GiB): use a smaller trainer.batch (with trainer.accumulate) "
            "or shape, network.predictor.recompute=true, or network.predictor.reduction=4; resume=true goes on from the last checkpoint"
        ) from error


def _finite(parameters: list[nn.Parameter]) -> bool:
    return all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in parameters)


def _mean_terms(terms: Sequence[Terms]) -> Terms:
    """The mean of each term over those that have it."""
    found = {name: [t[name] for t in terms if name in t] for name in dict.fromkeys(name for t in terms for name in t)}
    return {name: sum(values) / len(values) for name, values in found.items()}


def _score(means: Mapping[str, float]) -> float:
    """The score, larger is better: Dice if there are labels, else minus the similarity term."""
    score = means.get("dice", -means.get("similarity", math.inf))
    return score if math.isfinite(score) else -1e30


__all__ = ["Terms", "Trainer", "Training", "resume_settings"]
