"""Predictions in the space half-way between two images: the map of the swapped pair is the inverse.

Both images are moved into that space, each by a map of its own. A step predicts a momentum there and moves one image half of the way
forward, the other half of the way back. Swapping the images changes the sign of the momentum and the names of the two maps, and nothing
else (Greer et al., MICCAI 2023; Honkamaa and Marttinen, MELBA 2024).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from rdmm.dynamics.base import Dynamics, InitialConditions
from rdmm.dynamics.images import ImageDynamics
from rdmm.dynamics.svf import SVF
from rdmm.optim.problem import Energy, Problem, Similarity
from rdmm.spatial import ops
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair, ready_for_overlap
from rdmm.spatial.transform import Dense, on_device, polished
from rdmm.stages.base import Result
from rdmm.types import ConfigError


@dataclass(frozen=True, eq=False)
class Halves:
    """Maps from the half-way space to the fixed and to the pre-aligned moving image, and their inverses; all on the fixed grid."""

    to_fixed: Dense
    to_moving: Dense
    from_fixed: Dense
    from_moving: Dense

    @classmethod
    def start(cls, fixed: Image) -> Halves:
        """Four identities."""
        b, d = fixed.data.shape[0], fixed.grid.ndim
        still = Dense(fixed.data.new_zeros(b, d, *fixed.grid.shape), fixed.grid)
        return cls(still, still, still, still)

    def after(self, ic: InitialConditions, dynamics: ImageDynamics, fixed: Image) -> Halves:
        """The maps after one more step: a geodesic whose middle has the momentum of ``ic``, cut there."""
        half = ic.momentum / 2
        to_moving, from_moving = dynamics.flow(replace(ic, momentum=half), fixed)
        to_fixed, from_fixed = dynamics.flow(replace(ic, momentum=-half), fixed)
        return Halves(
            _then(to_fixed, self.to_fixed),
            _then(to_moving, self.to_moving),
            _then(self.from_fixed, from_fixed),
            _then(self.from_moving, from_moving),
        )

    def polished(self) -> Halves:
        """With inverses of more digits (``transform.polished``)."""
        from_fixed, from_moving = polished(self.from_fixed, self.to_fixed), polished(self.from_moving, self.to_moving)
        return replace(self, from_fixed=from_fixed, from_moving=from_moving)

    @property
    def total(self) -> Dense:
        """Fixed -> pre-aligned moving."""
        return _then(self.from_fixed, self.to_moving)

    @property
    def inverse(self) -> Dense:
        """Pre-aligned moving -> fixed."""
        return _then(self.from_moving, self.to_fixed)


def _then(first: Dense, then: Dense) -> Dense:
    """then ∘ first, sampled on their grid."""
    grid, u = first.grid, first.displacement
    return Dense(ops.compose(then.displacement, u, grid, grid.identity(u)), grid)


LevelPredictor = Callable[[Halves], InitialConditions]


@runtime_checkable
class HalfwayPredictor(Protocol):
    """A network that predicts steps in the half-way space.

    ``halfway(pair)`` looks at the images once. It gives one function for each step, from coarse to fine: halves -> initial conditions on
    a grid of the fixed frame. Swapped images must give the opposite momentum and the same pre-weights, which only the last step may have.
    """

    def halfway(self, pair: Pair[Image]) -> Sequence[LevelPredictor]: ...


@dataclass(frozen=True, eq=False)
class Level:
    """One step: its initial conditions, and the dynamics that shoots them."""

    ic: InitialConditions
    dynamics: ImageDynamics


def walk(network: HalfwayPredictor, pair: Pair[Image], dynamics: Dynamics) -> tuple[list[Level], Halves]:
    """All steps of a prediction, and the maps after them. The last step is shot by ``dynamics``, the others as SVF.

    Raises:
        ConfigError: the pair is not of images, or ``dynamics`` does not move images.
        DivergenceError: a step diverges.
    """
    if not isinstance(pair.fixed, Image) or not isinstance(dynamics, ImageDynamics):
        raise ConfigError("this network predicts maps of images: give two images, and dynamics=svf, lddmm or rdmm")
    predictors = network.halfway(pair)
    halves, levels = Halves.start(pair.fixed), list[Level]()
    for k, predict in enumerate(predictors):
        ic = predict(halves)
        shot = dynamics if k == len(predictors) - 1 else SVF(dynamics.smoother, dynamics.integrator)
        with torch.autocast(ic.momentum.device.type, enabled=False):
            halves = halves.after(ic, shot, pair.fixed)
        levels.append(Level(ic, shot))
    return levels, halves


def halfway_energy(problem: Problem, pair: Pair[Image], levels: Sequence[Level], halves: Halves, step: int = 0) -> Energy:
    """The problem's objective, both images moved into the half-way space; with the velocity energies of all steps.

    Args:
        step: iteration or epoch, for the penalty's schedule.
    """
    *before, last = levels
    with torch.autocast(last.ic.momentum.device.type, enabled=False):
        met = replace(pair, fixed=pair.fixed.moved_by(halves.to_fixed))
        energy = problem.evaluate(last.ic, halves.to_moving, met, step)
        velocity = sum((0.5 * level.dynamics.energy(level.ic, pair.fixed) for level in before), torch.zeros_like(energy.velocity))
        return replace(energy, velocity=energy.velocity + velocity, total=energy.total + velocity)


@dataclass(frozen=True)
class Halfway:
    """A stage: the map that a network predicts half-way. It is no single geodesic, so the result has no initial conditions."""

    problem: Problem
    network: HalfwayPredictor

    @property
    def similarity(self) -> Similarity:
        return self.problem.similarity

    def __call__(self, pair: Pair[Image]) -> Result:
        begin = time.perf_counter()
        pair = ready_for_overlap(pair.with_initial(on_device(pair.initial, pair.fixed.data.device)))
        with torch.no_grad():
            levels, halves = walk(self.network, pair, self.problem.dynamics)
            halves = halves.polished()
            energy = halfway_energy(self.problem, pair, levels, halves).as_dict()
        return Result(halves.total, halves.inverse, energy, seconds={"deform": time.perf_counter() - begin})
