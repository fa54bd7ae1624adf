"""What a registration minimizes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from rdmm.dynamics.base import Dynamics, InitialConditions
from rdmm.optim.contrast import match_contrast
from rdmm.regularizer.penalty import NoPenalty, Penalty
from rdmm.similarity import Sum
from rdmm.similarity.parts import compare
from rdmm.similarity.shapes.divergence import MeasureDivergence
from rdmm.spatial import ops
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Dense, Identity, Transform
from rdmm.types import ConfigError, InputError, Tensor, option, require_finite_fields

log = logging.getLogger(__name__)

BARRIER_THRESHOLD = 0.2
"""The barrier is zero for cells that keep at least this fraction of their volume."""

Similarity = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Energy:
    """The objective and its terms, weighted, (b,) each: ``total`` is the sum of the others."""

    total: Tensor
    similarity: Tensor
    velocity: Tensor
    weights: Tensor
    landmarks: Tensor
    barrier: Tensor

    def as_dict(self) -> dict[str, float]:
        """Means over the batch, read at once."""
        names = [f.name for f in fields(self)]
        return dict(zip(names, torch.stack([getattr(self, name).detach().mean() for name in names]).tolist(), strict=True))


def _compares_measures(similarity: Similarity) -> bool:
    terms = similarity.terms.values() if isinstance(similarity, Sum) else [similarity]
    return all(isinstance(term, MeasureDivergence) for term in terms)


@dataclass(frozen=True)
class Problem:
    """1/2 <m0, v0> + similarity_weight * Sim(I0 ∘ phi(1), I1) * (1 + Reg(h(0))) + landmark_weight * L + barrier * B(phi(1)), model (19).

    L is the mean squared distance of the pair's landmarks, in squared domain units. Measures are pushed forward instead.

    A geodesic never folds, but its map on a grid can, where it is squeezed to less than a voxel. B, the mean over simplices of cells of
    (BARRIER_THRESHOLD - det)_+^2 (ops.barrier), is zero until a cell is squeezed to less than BARRIER_THRESHOLD of its volume.

    Args:
        similarity_weight: weight of the similarity against the regularization.
        barrier: weight of B; 0 leaves it out, as it must be for points.
        landmark_weight: weight of L; 0: landmarks are for evaluation only.
    """

    dynamics: Dynamics
    similarity: Similarity
    penalty: Penalty = field(default_factory=NoPenalty)
    similarity_weight: float = 1.0
    barrier: float = 0.0
    landmark_weight: float = 0.0

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if not self.similarity_weight > 0:
            raise ConfigError(f"similarity_weight must be > 0, not {self.similarity_weight}")
        if not self.barrier >= 0:
            raise ConfigError(f"barrier must be >= 0, not {self.barrier}")
        if not self.landmark_weight >= 0:
            raise ConfigError(f"landmark_weight must be >= 0, not {self.landmark_weight}")
        if self.barrier and not self.dynamics.has_cells:
            raise ConfigError(
                "dynamics=points is for shapes (.vtk, .ply, ...); its flow has no cells that could fold, so barrier must be 0. "
                "For images use svf, lddmm or rdmm"
            )

    def check(self, pair: Pair) -> None:
        """Say what has no effect on this pair.

        Raises:
            ConfigError: landmarks are to be matched but there are none.
            InputError: the similarity is for images, and the pair is of shapes.
        """
        if self.landmark_weight and pair.landmarks is None:
            raise ConfigError(f"landmark_weight is {self.landmark_weight} but there are no landmarks: pass {option('landmarks', 'CSV')}")
        if isinstance(pair.fixed, Measure) and not _compares_measures(self.similarity):
            name = type(self.similarity).__name__
            raise InputError(f"{name} compares images; for shapes (points, curves, surfaces) use e.g. similarity=sinkhorn_points")
        if not isinstance(self.penalty, NoPenalty) and not self.dynamics.has_preweights:
            log.warning("penalty has no effect: %s has no pre-weights; use dynamics=rdmm", type(self.dynamics).__name__)

    def energy(
        self, ic: InitialConditions, pair: Pair, step: int = 0, warp: Callable[[Transform], Any] | None = None
    ) -> tuple[Energy, Transform]:
        """The objective at ``ic``, and the map phi(1), fixed -> pre-aligned moving.

        Args:
            step: iteration or epoch, for the penalty's schedule.
            warp: phi(1) -> the warped shape; default: ``pair.moved_by``.
        """
        with torch.autocast(ic.momentum.device.type, enabled=False):
            transform = self.dynamics.shoot(ic, pair.source)
            return self.evaluate(ic, transform, pair, step, None if warp is None else warp(transform)), transform

    def evaluate(self, ic: InitialConditions, transform: Transform, pair: Pair, step: int = 0, warped: Any = None) -> Energy:
        """The objective when the map phi(1), and optionally the warped shape, has been computed already."""
        with torch.autocast(ic.momentum.device.type, enabled=False):
            return self._terms(ic, transform, pair, step, pair.moved_by(transform) if warped is None else warped)

    def with_matched_contrast(self, ic: InitialConditions, pair: Pair) -> Pair:
        """The pair with parts in one contrast (``match_contrast``), from the alignment at ``ic``, if the similarity supposes one."""
        if not isinstance(pair.fixed, Image) or not getattr(self.similarity, "supposes_one_contrast", False):
            return pair
        with torch.no_grad():
            transform = self.dynamics.shoot(ic, pair.source) if bool(ic.momentum.any()) else Identity()
            return match_contrast(pair, pair.moved_by(transform))

    def weight_penalty(self, ic: InitialConditions, source: Any, step: int) -> Tensor:
        """(b,) Reg(h(0)), per unit of the weighted similarity, at an iteration or epoch; 0 where there are no pre-weights."""
        return self.dynamics.weight_penalty(self.penalty, ic, source, step)

    def landmark_error(self, pair: Pair, transform: Transform) -> Tensor:
        """(b,) L of the total map, model (21)."""
        marks = pair.landmarks
        if marks is None:
            raise ConfigError(f"landmark_weight is {self.landmark_weight} but there are no landmarks: pass {option('landmarks', 'CSV')}")
        total_map = pair.total_map(transform)
        start, end = (marks.fixed, marks.moving) if isinstance(pair.fixed, Image) else (marks.moving, marks.fixed)
        return (total_map(start) - end).square().sum(1).mean(1)

    def _terms(self, ic: InitialConditions, transform: Transform, pair: Pair, step: int, warped: Any) -> Energy:
        source = pair.source
        similarity = self.similarity_weight * compare(self.similarity, warped, pair.fixed)
        velocity = 0.5 * self.dynamics.energy(ic, source)
        weights = similarity * self.weight_penalty(ic, source, step)
        landmarks = torch.zeros_like(velocity)
        if self.landmark_weight:
            landmarks = self.landmark_weight * self.landmark_error(pair, transform)
        barrier = torch.zeros_like(velocity)
        if self.barrier and isinstance(transform, Dense):
            barrier = self.barrier * ops.barrier(transform.displacement, transform.grid, BARRIER_THRESHOLD)
        total = similarity + velocity + weights + landmarks + barrier
        return Energy(total, similarity, velocity, weights, landmarks, barrier)
