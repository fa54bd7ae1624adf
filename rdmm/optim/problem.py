"""What a registration minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from rdmm.dynamics.base import Dynamics, InitialConditions
from rdmm.dynamics.points import PointLDDMM
from rdmm.dynamics.rdmm import RDMM
from rdmm.regularizer.penalty import NoPenalty, Penalty
from rdmm.spatial import ops
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Dense, Transform
from rdmm.types import ConfigError, Tensor

BARRIER_THRESHOLD = 0.1
"""Part of its volume that a cell may be squeezed to before the barrier sets in."""

Similarity = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Energy:
    """Terms of the objective, (b,) each."""

    total: Tensor
    similarity: Tensor
    velocity: Tensor
    weights: Tensor
    landmarks: Tensor

    def as_dict(self) -> dict[str, float]:
        """Means over the batch."""
        return {f.name: float(getattr(self, f.name).detach().mean()) for f in fields(self)}


@dataclass(frozen=True)
class Problem:
    """1/2 <m0, v0> + similarity_weight * Sim(I0 ∘ phi(1), I1) + Reg(h(0)) + landmark_weight * L + barrier * B(phi(1)), model (19).

    L is the mean squared distance of the pair's landmarks, in squared domain units. Measures are pushed forward instead.

    A geodesic never folds, but its map on a grid can, where it is squeezed to less than a voxel. B, the mean over cells of
    (FLOOR - det)_+^2 (ops.barrier), is zero until a cell is squeezed to less than FLOOR of its volume.

    Args:
        similarity_weight: large values trust the images, small ones the regularizer.
        barrier: weight of B; 0 leaves it out, as it must be for points.
        landmark_weight: of L; 0: landmarks only judge.
    """

    dynamics: Dynamics | PointLDDMM
    similarity: Similarity
    penalty: Penalty = field(default_factory=NoPenalty)
    similarity_weight: float = 1.0
    barrier: float = 0.0
    landmark_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.similarity_weight > 0:
            raise ConfigError(f"similarity_weight must be > 0, not {self.similarity_weight}")
        if not self.barrier >= 0:
            raise ConfigError(f"barrier must be >= 0, not {self.barrier}")
        if not self.landmark_weight >= 0:
            raise ConfigError(f"landmark_weight must be >= 0, not {self.landmark_weight}")
        if self.barrier and isinstance(self.dynamics, PointLDDMM):
            raise ConfigError("a flow of points has no cells: barrier must be 0 with dynamics=points")

    def energy(self, ic: InitialConditions, pair: Pair, step: int = 0) -> tuple[Energy, Transform]:
        """The objective at ``ic``, and the map phi(1), fixed -> pre-aligned moving.

        Args:
            step: iteration or epoch, for the penalty's schedule.
        """
        with torch.autocast(ic.momentum.device.type, enabled=False):
            transform = self.dynamics.shoot(ic, pair.source)
            return self.judged(ic, transform, pair, step), transform

    def judged(self, ic: InitialConditions, transform: Transform, pair: Pair, step: int = 0, moved: Any = None) -> Energy:
        """The objective at ``ic`` whose map phi(1), and perhaps the shape that it moves, is known."""
        with torch.autocast(ic.momentum.device.type, enabled=False):
            return self._judged(ic, transform, pair, step, pair.moved_by(transform) if moved is None else moved)

    def weight_penalty(self, ic: InitialConditions, source: Any, step: int) -> Tensor:
        """(b,) Reg(h(0)) at an iteration or epoch; 0 where there are no pre-weights."""
        if ic.weights is None or not isinstance(self.dynamics, RDMM):
            return ic.momentum.new_zeros(ic.momentum.shape[0])
        grid = ic.grid(source)
        return self.penalty(ic.weights, self.dynamics.weight_scale(grid), self.dynamics.smoother, grid, step)

    def landmark_error(self, pair: Pair, transform: Transform) -> Tensor:
        """(b,) L of the total map, model (21)."""
        marks = pair.landmarks
        if marks is None:
            raise ConfigError(f"landmark_weight is {self.landmark_weight} but there are no landmarks: pass --landmarks CSV")
        whole = pair.total_map(transform)
        start, end = (marks.fixed, marks.moving) if isinstance(pair.fixed, Image) else (marks.moving, marks.fixed)
        return (whole(start) - end).square().sum(1).mean(1)

    def _judged(self, ic: InitialConditions, transform: Transform, pair: Pair, step: int, moved: Any) -> Energy:
        source = pair.source
        similarity = self.similarity_weight * self.similarity(moved, pair.fixed)
        velocity = 0.5 * self.dynamics.energy(ic, source)
        weights = self.weight_penalty(ic, source, step)
        landmarks = torch.zeros_like(velocity)
        if self.landmark_weight:
            landmarks = self.landmark_weight * self.landmark_error(pair, transform)
        total = similarity + velocity + weights + landmarks
        if self.barrier and isinstance(transform, Dense):
            total = total + self.barrier * ops.barrier(transform.displacement, transform.grid, BARRIER_THRESHOLD)
        return Energy(total, similarity, velocity, weights, landmarks)
