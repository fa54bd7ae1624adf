"""Training losses. The loss of the deformation is the objective of a registration, Problem.energy, at the predicted initial conditions."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import nn

from networks.affine import AffineNetwork
from rdmm import metrics
from rdmm.data.inputs import Inputs
from rdmm.dynamics.base import InitialConditions
from rdmm.optim.initializers import Initializer
from rdmm.optim.problem import BARRIER_THRESHOLD, Energy, Problem, Similarity
from rdmm.spatial import ops
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Affine, Dense, Identity, Transform, displacement
from rdmm.stages.halfway import HalfwayPredictor, halfway_energy, walk
from rdmm.types import ConfigError, DivergenceError, Tensor

log = logging.getLogger(__name__)

Terms = dict[str, float]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of one forward pass.

    Attributes:
        loss: a scalar.
        terms: its parts.
        transform: the total map, fixed -> moving, of every pair of the batch.
        ic: initial conditions of each step.
    """

    loss: Tensor
    terms: Terms
    transform: Transform
    ic: list[InitialConditions]


class Objective(Protocol):
    """(batch, epoch, seed, both) -> Outcome.

    ``seed`` is for random choices, e.g. of labels; ``both``: the second half of the batch is the first half with fixed and moving swapped.
    """

    @property
    def trained(self) -> nn.Module: ...

    def __call__(self, batch: Inputs, epoch: int, seed: int, both: bool) -> Outcome: ...


def soft_dice(batch: Inputs, transform: Transform, count: int, seed: int) -> Tensor:
    """1 - mean Dice of up to ``count`` labels that both images have, chosen at random by ``seed``; one-hot maps are warped linearly."""
    fixed, moving = batch.fixed_labels, batch.moving_labels
    if fixed is None or moving is None:
        raise ConfigError("trainer.dice_weight is above 0 but the data set has no labels: set it to 0, or name the label maps")
    floats = batch.pair.fixed.data
    common = set(fixed.data.unique().tolist()) & set(moving.data.unique().tolist()) - {0}
    labels = sorted(common if batch.labels is None else common & set(batch.labels))
    if not labels:
        return floats.new_zeros(())
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count]
    chosen = torch.tensor(labels, dtype=fixed.data.dtype)[order].to(fixed.data.device).view(1, -1, *(1,) * fixed.grid.ndim)
    a = (fixed.data == chosen).to(floats)
    b = Image((moving.data == chosen).to(floats), moving.grid).moved_by(transform, fixed.grid).data
    both = 2 * (a * b).flatten(2).sum(2)
    total = a.flatten(2).sum(2) + b.flatten(2).sum(2)
    there = (a.flatten(2).sum(2) > 0).to(both)
    return 1 - (there * both / total.clamp_min(1e-6)).sum() / there.sum().clamp_min(1)


def log_term(terms: Terms, name: str, value: Tensor) -> Tensor:
    """``value``, a scalar, whose number is put into ``terms``."""
    terms[name] = float(value.detach())
    return value


ConsistencyUnit = Literal["voxel", "domain"]


def inverse_consistency(transform: Transform, pair: Pair[Image], unit: ConsistencyUnit = "voxel") -> Tensor:
    """Mean square of phi_ab ∘ phi_ba - id at half resolution, of model (50): in its voxels, or in domain units as in the RDMM paper.

    The second half of the batch is its first half, swapped.
    """
    grid = pair.fixed.grid.scaled(0.5)
    u = displacement(transform, grid, pair.fixed.data)
    error = ops.compose(u, torch.roll(u, len(u) // 2, 0), grid, grid.identity(u))
    if unit == "domain":
        return error.square().sum(1).mean()
    h = torch.tensor(grid.spacing).to(error).view(1, -1, *(1,) * grid.ndim)
    return (error / h).square().sum(1).mean()


@dataclass(frozen=True, eq=False)
class AffineObjective:
    """Sum over steps of similarity + stretch_weight * |A - I|^2.

    Args:
        similarity: a global one works best.
    """

    network: AffineNetwork
    similarity: Similarity
    stretch_weight: float = 0.0
    dice_weight: float = 0.0
    dice_labels: int = 8

    @property
    def trained(self) -> nn.Module:
        return self.network

    def __call__(self, batch: Inputs, epoch: int, seed: int, both: bool) -> Outcome:
        d = batch.pair.fixed.grid.ndim
        matrices = self.network.matrices(batch.pair)
        loss = matrices[-1].new_zeros(())
        for matrix in matrices:
            similarity = self.similarity(batch.pair.moved_by(Affine(matrix)), batch.pair.fixed).mean()
            stretch = (matrix[:, :d, :d] - torch.eye(d).to(matrix)).square().sum((1, 2)).mean()
            loss = loss + similarity + self.stretch_weight * stretch
        terms = {"similarity": float(similarity.detach()), "stretch": float(stretch.detach())}
        transform = Affine(matrices[-1])
        if self.dice_weight:
            loss = loss + self.dice_weight * log_term(terms, "dice_loss", soft_dice(batch, transform, self.dice_labels, seed))
        return Outcome(loss, {"loss": float(loss.detach()), **terms}, transform, [])


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network predicts for a batch.

    Attributes:
        loss: the objective of its steps, a scalar.
        energy: that of the last step; None: it diverged, and ``loss`` is its velocity energy.
        pair: its initial map is the total one.
        ic: initial conditions of each step.
    """

    loss: Tensor
    energy: Energy | None
    pair: Pair[Image]
    ic: list[InitialConditions]


@dataclass(frozen=True, eq=False)
class DeformationObjective:
    """sum over steps of Problem.energy + dice_weight * (1 - Dice) + inverse_consistency * |phi_ab ∘ phi_ba - id|^2 (RDMM paper,
    section 3.3). Each step predicts from the result of the one before. The affine network, if there is one, is frozen.

    A network that predicts half-way (HalfwayPredictor) has levels instead of steps, and one similarity, of the images that meet half-way.

    If a predicted geodesic diverges, the steps end there and its energy alone is the loss, which makes the flow slower.

    Args:
        steps: number of predictions, one after the other.
        inverse_consistency: weight of the squared error, at half resolution.
        consistency_unit: of the error: ``voxel`` or ``domain``.
        folding: weight of the barrier B (Problem) of the total map at the images' resolution. The composition of two maps that do not
            fold on their shooting grids can fold.
        dice_labels: number of labels in each batch's Dice.
    """

    network: nn.Module
    problem: Problem
    affine: AffineNetwork | None = None
    steps: int = 2
    inverse_consistency: float = 1e-4
    consistency_unit: ConsistencyUnit = "voxel"
    folding: float = 20.0
    dice_weight: float = 0.0
    dice_labels: int = 8

    def __post_init__(self) -> None:
        if self.consistency_unit not in get_args(ConsistencyUnit):
            raise ConfigError(f"loss.consistency_unit must be voxel or domain, not {self.consistency_unit!r}")
        if isinstance(self.network, HalfwayPredictor) and self.steps != 1:
            raise ConfigError(f"network/predictor=pyramid has steps of its own, its levels: set network.steps=1, not {self.steps}")

    @property
    def trained(self) -> nn.Module:
        return self.network

    def __call__(self, batch: Inputs, epoch: int, seed: int, both: bool) -> Outcome:
        pair = batch.pair
        if self.affine is not None:
            with torch.no_grad():
                pair = pair.with_initial(Affine(self.affine.matrices(pair)[-1]))
        found = self._halfway(pair, epoch) if isinstance(self.network, HalfwayPredictor) else self._stepwise(self.network, pair, epoch)
        loss, total_map = found.loss, found.pair.initial
        if found.energy is None:
            return Outcome(loss, {"loss": float(loss.detach()), "diverged": 1.0}, total_map, found.ic)
        terms = {k: v for k, v in found.energy.as_dict().items() if k not in ("total", "landmarks")}
        if self.dice_weight:
            loss = loss + self.dice_weight * log_term(terms, "dice_loss", soft_dice(batch, total_map, self.dice_labels, seed))
        if both and self.inverse_consistency:
            error = inverse_consistency(total_map, found.pair, self.consistency_unit)
            loss = loss + self.inverse_consistency * log_term(terms, "inverse_consistency", error)
        if self.folding:
            grid = pair.fixed.grid
            squeezed = ops.barrier(displacement(total_map, grid, pair.fixed.data), grid, BARRIER_THRESHOLD).mean()
            loss = loss + self.folding * log_term(terms, "squeezed", squeezed)
        return Outcome(loss, {"loss": float(loss.detach()), **terms}, total_map, found.ic)

    def _stepwise(self, network: Initializer, pair: Pair[Image], epoch: int) -> Prediction:
        loss, conditions = pair.fixed.data.new_zeros(()), list[InitialConditions]()
        for _ in range(self.steps):
            ic = network(pair)
            conditions.append(ic)
            try:
                energy, pair = self._step(ic, pair, epoch)
            except DivergenceError as error:
                log.warning("%s", error)
                return Prediction(0.5 * self.problem.dynamics.energy(ic, pair.source).mean(), None, pair, conditions)
            loss = loss + energy.total.mean()
        return Prediction(loss, energy, pair, conditions)

    def _halfway(self, pair: Pair[Image], epoch: int) -> Prediction:
        """All levels of a pyramid: one similarity at the end, and the velocity energies of all."""
        assert isinstance(self.network, HalfwayPredictor)
        levels, halves = walk(self.network, pair, self.problem.dynamics)
        energy = halfway_energy(self.problem, pair, levels, halves, epoch)
        grid = pair.fixed.grid
        total_map = Dense(displacement(pair.total_map(halves.total), grid, pair.fixed.data), grid)
        return Prediction(energy.total.mean(), energy, pair.with_initial(total_map), [level.ic for level in levels])

    def _step(self, ic: InitialConditions, pair: Pair[Image], epoch: int) -> tuple[Energy, Pair[Image]]:
        """Problem.energy at ``ic``, and the pair whose initial map is the total one."""
        grid, moved = pair.fixed.grid, pair

        def warp(transform: Transform) -> Image:
            """The total map is sampled once on the image's voxels; the warped image and the next step use that."""
            nonlocal moved
            moved = pair.with_initial(Dense(displacement(pair.total_map(transform), grid, pair.fixed.data), grid))
            return moved.moved_by(Identity())

        return self.problem.energy(ic, pair, epoch, warp)[0], moved


@torch.no_grad()
def evaluate(objective: Objective, sample: Inputs, epoch: int) -> tuple[Terms, Outcome]:
    """Loss and similarity, folds in percent and, with labels, mean Dice of a held-out pair."""
    outcome = objective(sample, epoch, 0, both=False)
    grid, out = sample.pair.fixed.grid, {"diverged": 0.0, **outcome.terms}
    u = displacement(outcome.transform, grid, sample.pair.fixed.data)
    out["folds_percent"] = 100 * float((ops.jacobian_determinant(u, grid) <= 0).double().mean())
    if sample.fixed_labels is not None and sample.moving_labels is not None:
        moved = sample.moving_labels.moved_by(outcome.transform, grid, mode="nearest")
        dice, labels = metrics.mean_dice(metrics.dice(moved.data, sample.fixed_labels.data, sample.labels))
        if labels:
            out["dice"] = dice
    return out, outcome
