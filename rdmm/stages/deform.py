"""Deformable registration: a geodesic from an initializer and an optimizer."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rdmm.dynamics.base import require_carrier
from rdmm.optim.initializers import Initializer, Regions, Zero
from rdmm.optim.multiscale import LBFGS, NoOptimizer, Optimizer
from rdmm.optim.problem import Energy, Problem, Similarity
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.regularizer.weights import BACKGROUND
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair, ready_for_overlap
from rdmm.spatial.transform import Dense, Identity, on_device, polished
from rdmm.stages.base import Chain, Result, Stage
from rdmm.stages.halfway import Halfway, HalfwayPredictor
from rdmm.types import ConfigError, DivergenceError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deform:
    """A geodesic that an optimizer finds from an initializer's start (with NoOptimizer: learned mode; the identity without a momentum)."""

    problem: Problem
    optimizer: Optimizer = field(default_factory=LBFGS)
    initializer: Initializer = field(default_factory=Zero)

    @property
    def similarity(self) -> Similarity:
        return self.problem.similarity

    def check(self, pair: Pair) -> None:
        """Raise ConfigError if the dynamics does not move shapes of this kind, or regions and pre-weights do not fit together."""
        dynamics = self.problem.dynamics
        require_carrier(dynamics, pair.fixed)
        if isinstance(pair.fixed, Image):
            warn_of_wrong_lengths(dynamics.smoother, pair.fixed.grid)
        if dynamics.smoother.regions and isinstance(self.initializer, Zero):
            raise ConfigError("smoother=regions gives Gaussians to regions of a label map: use dynamics=rdmm initializer=regions")
        if not isinstance(self.initializer, Regions):
            return
        if not dynamics.has_preweights:
            raise ConfigError("initializer=regions gives pre-weights: use dynamics=rdmm")
        given, wanted = len(self.initializer.rows()[BACKGROUND]), len(dynamics.smoother.sigmas)
        if given != wanted:
            raise ConfigError(
                f"initializer.weights and background must have {wanted} numbers, one per Gaussian of the smoother, not {given}; or use "
                "smoother=regions, where each region has Gaussians of its own"
            )

    def __call__(self, pair: Pair) -> Result:
        begin = time.perf_counter()
        dynamics = self.problem.dynamics
        self.check(pair)
        if isinstance(pair.fixed, Image):
            pair = ready_for_overlap(pair.with_initial(on_device(pair.initial, pair.fixed.data.device)))
        with torch.no_grad():
            ic = self.initializer(pair)
        if not self.optimizer.searches and not bool(ic.momentum.any()):
            with torch.no_grad():
                energy = _finite(self.problem.evaluate(dynamics.complete(ic, pair.source), Identity(), pair))
            return Result(Identity(), Identity(), energy, seconds={"deform": time.perf_counter() - begin})
        ic, history = self.optimizer(self.problem, pair, dynamics.complete(ic, pair.source))
        ic = replace(ic, start=None)  # the map is that of the momentum, which is written
        with torch.no_grad():
            transform, inverse = dynamics.flow(ic, pair.source)
            if isinstance(transform, Dense) and isinstance(inverse, Dense):
                inverse = polished(inverse, transform)
            energy = _finite(self.problem.evaluate(ic, transform, pair, len(history)))
        seconds = {"deform": time.perf_counter() - begin}
        has_stalled = self.optimizer.searches and not history
        return Result(transform, inverse, energy, ic, history, seconds, pair.initial, dynamics, has_stalled=has_stalled)


def warn_of_wrong_lengths(smoother: MultiGaussian, grid: Grid) -> None:
    """Warn if all Gaussians are narrower than half a voxel, or all are wider than the image: mostly, their unit is wrong."""
    narrowest, widest = smoother.scales(grid)[0], smoother.scales(grid)[-1]
    if widest < min(grid.spacing) / 2:
        which, what = "widest", f"is narrower than half a voxel ({min(grid.spacing) * grid.length:.3g} mm): the map is not smooth"
    elif narrowest > 1:
        which, what = "narrowest", f"is wider than the image ({grid.length:.3g} mm): the map hardly bends"
    else:
        return
    length = (widest if which == "widest" else narrowest) * grid.length
    unit = "millimeters" if smoother.unit == "mm" else "units of the image's longest edge"
    log.warning("the %s Gaussian of the smoother (%.3g mm) %s; smoother.sigmas are in %s (smoother.unit)", which, length, what, unit)


def _finite(energy: Energy) -> dict[str, float]:
    """The terms of the result's energy; on a GPU, this is where a flow that diverged shows.

    Raises:
        DivergenceError: one of them is not finite.
    """
    terms = energy.as_dict()
    if not math.isfinite(terms["total"]):
        raise DivergenceError(
            "the energy of the result is not finite: the flow diverged, or the masks do not overlap; start from a smaller momentum"
        )
    return terms


def learned(affine: Stage, deform: Deform, steps: int) -> Chain:
    """``affine``, then ``deform`` ``steps`` times. Each step predicts from the result of the one before; the optimizer refines the last
    prediction only (none: learned mode). A network that predicts half-way (HalfwayPredictor) has steps of its own; the optimizer goes on
    from its whole map."""
    if not 1 <= steps <= 100:
        raise ConfigError(f"stages.steps must be at least 1, and at most 100; got {steps}")
    if isinstance(deform.initializer, HalfwayPredictor):
        if steps != 1:
            raise ConfigError(f"this network has steps of its own, its levels: train it with network.steps=1, not {steps}")
        whole: list[Stage] = [affine, Halfway(deform.problem, deform.initializer)]
        return Chain([*whole, replace(deform, initializer=Zero())] if deform.optimizer.searches else whole)
    predicted = replace(deform, optimizer=NoOptimizer())
    return Chain([affine, *[predicted] * (steps - 1), deform])


def deforms(stage: Any) -> list[Deform]:
    """The deformations of a chain, in order."""
    if isinstance(stage, Chain):
        return [d for s in stage.stages for d in deforms(s)]
    return [stage] if isinstance(stage, Deform) else []
