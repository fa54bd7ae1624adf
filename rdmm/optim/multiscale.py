"""Coarse-to-fine search for initial conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Protocol

import torch

from rdmm.dynamics.base import Coordinates, InitialConditions
from rdmm.optim.lbfgs import History, log, minimize
from rdmm.optim.problem import Problem
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.runtime.progress import report_progress
from rdmm.spatial.pair import Pair
from rdmm.types import ConfigError, DivergenceError, Tensor, counted, require_finite_fields

VOXEL_OF_SIGMA = {2: 0.5, 3: 0.845}
"""Voxel of the shooting grid over the narrowest Gaussian, for each dimension. In 2D a finer grid costs little: slices
gain .008 Dice; a volume gains nothing."""


class Optimizer(Protocol):
    """(problem, pair, start) -> better initial conditions, and what happened: one row per iteration.

    ``searches``: whether it is meant to change the initial conditions.
    """

    searches: ClassVar[bool]

    def __call__(self, problem: Problem, pair: Pair, ic: InitialConditions) -> tuple[InitialConditions, History]: ...


@dataclass(frozen=True)
class NoOptimizer:
    """The initial conditions as they are: learned mode."""

    searches: ClassVar[bool] = False

    def __call__(self, problem: Problem, pair: Pair, ic: InitialConditions) -> tuple[InitialConditions, History]:
        return ic, []


@dataclass(frozen=True)
class LBFGS:
    """Coarse-to-fine L-BFGS on the preconditioned momentum and, where they are free, the pre-weights.

    Args:
        scales: of the image pyramid, increasing, in (0, 1].
        iterations: on each scale.
        shooting: resolution of the shooting grid over that of the image, one number or one per scale; None: that of
            ``voxel_of_sigma``.
        voxel_of_sigma: with ``shooting=None``, the voxel of the shooting grid over the narrowest Gaussian that matters. At .845 a Gaussian
            passes a thousandth of the shortest wave on the grid, no more than the search itself keeps of it (delta of
            MultiGaussian.precondition). None: VOXEL_OF_SIGMA of the pair's dimension.
        finest: with ``shooting=None``, the largest resolution of the shooting grid over that of the image. With more than .7 a search takes
            longer and ends no better; the geodesic is more exact (benchmarks/README.md).
        tolerance: stop a scale when the energy falls by less than this fraction of itself, three times in a row.
        memory: number of steps from which L-BFGS estimates the curvature.
        match_contrast: whether images of two contrasts are compared in one, too, where the similarity supposes it: model (53).
        weights: whether pre-weights are optimized with the momentum; False: each scale takes those given, at its own resolution.
    """

    scales: Sequence[float] = (0.25, 0.5, 1.0)
    iterations: Sequence[int] = (60, 60, 60)
    shooting: float | Sequence[float] | None = None
    tolerance: float = 1e-4
    memory: int = 8
    weights: bool = True
    voxel_of_sigma: float | None = None
    finest: float = 0.7
    match_contrast: bool = True
    searches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if not self.scales or len(self.scales) != len(self.iterations):
            given = f"{counted(len(self.scales), 'scale')} but {counted(len(self.iterations), 'iteration')}"
            raise ConfigError(f"optimizer: {given}; give one number per scale")
        if any(not 0 < s <= 1 for s in self.scales) or list(self.scales) != sorted(self.scales):
            raise ConfigError(f"optimizer.scales must increase within (0, 1], not {list(self.scales)}")
        if any(n < 1 for n in self.iterations):
            raise ConfigError(f"optimizer.iterations must be at least 1 each, not {list(self.iterations)}; to run none use optimizer=none")
        shooting = self._shooting()
        if len(shooting) != len(self.scales) or any(s is not None and not 0 < s <= 1 for s in shooting):
            raise ConfigError(f"optimizer.shooting must be in (0, 1], one number or one per scale, not {self.shooting}")
        for name, fits, wanted in (
            ("tolerance", self.tolerance >= 0, ">= 0"),
            ("memory", self.memory >= 1, ">= 1"),
            ("voxel_of_sigma", self.voxel_of_sigma is None or self.voxel_of_sigma > 0, "> 0"),
            ("finest", 0 < self.finest <= 1, "in (0, 1]"),
        ):
            if not fits:
                raise ConfigError(f"optimizer.{name} must be {wanted}, not {getattr(self, name)}")

    def __call__(self, problem: Problem, pair: Pair, ic: InitialConditions) -> tuple[InitialConditions, History]:
        if self.match_contrast:
            pair = self._with_matched_contrast(problem, pair, ic)
        return self._climb(problem, pair, ic, len(self.scales))

    def _with_matched_contrast(self, problem: Problem, pair: Pair, ic: InitialConditions) -> Pair:
        """The pair, with parts in one contrast if there are two: a rough registration without the finest level gives the curve."""
        if problem.with_matched_contrast(ic, pair) is pair:
            return pair
        log.info("contrast: there may be two; a rough registration finds the curve between the intensities")
        rough, _ = self._climb(problem, pair, ic, len(self.scales) - 1)
        matched = problem.with_matched_contrast(rough, pair)
        log.info("contrast: %s", "one" if matched is pair else "two; one image is compared in the contrast of the other, too")
        return matched

    def _climb(self, problem: Problem, pair: Pair, ic: InitialConditions, levels: int) -> tuple[InitialConditions, History]:
        """Search on the coarsest ``levels``, one after the other."""
        history: History = []
        given, preconditioner = ic.weights, problem.dynamics.preconditioner(ic)
        steps = list(zip(self.scales, self.iterations, self._shooting(), strict=True))[:levels]
        for level, (scale, iterations, fraction) in enumerate(steps):
            level_pair = pair.scaled(scale)
            if fraction is None:
                voxel = self.voxel_of_sigma or VOXEL_OF_SIGMA[ic.momentum.shape[1]]
                fraction = min(self.finest, problem.dynamics.shooting_fraction(level_pair.fixed, voxel, preconditioner))
            if not self.weights:
                ic = replace(ic, weights=given)
            ic = problem.dynamics.resized(ic, pair.fixed, scale * fraction)
            ic = self._search(_Level(problem, level_pair, level, iterations, history, preconditioner), ic)
        return ic, history

    def _shooting(self) -> list[float | None]:
        if self.shooting is None or isinstance(self.shooting, int | float):
            return [self.shooting] * len(self.scales)
        return list(self.shooting)

    def _search(self, level: _Level, ic: InitialConditions) -> InitialConditions:
        """Better initial conditions on one level."""
        space = level.problem.dynamics.coordinates(ic, level.pair.source, self.weights, level.preconditioner)
        before = len(level.history)
        x, f = minimize(
            partial(level.objective, space),
            space.pack(ic).detach(),
            iterations=level.iterations,
            first_step=space.first_step,
            memory=self.memory,
            tolerance=self.tolerance,
            report=level.report,
            change=partial(level.penalty_change, space) if space.free_weights else None,
        )
        size, count = tuple(ic.momentum.shape[2:]), len(level.history) - before
        log.info("level %d, momentum of %s: energy %.5f after %s", level.number, size, f, counted(count, "iteration"))
        with torch.no_grad():
            return space.unpack(x)


@dataclass(frozen=True, eq=False)
class _Level:
    """The objective of one level as functions of the optimizer's vector, and the rows of its history."""

    problem: Problem
    pair: Pair
    number: int
    iterations: int
    history: History
    preconditioner: MultiGaussian
    terms: dict[str, float] = field(default_factory=dict)

    def objective(self, space: Coordinates, x: Tensor) -> tuple[float, Tensor]:
        """The energy and its gradient."""
        x = x.detach().requires_grad_()
        energy, _ = self.problem.energy(space.unpack(x), self.pair, len(self.history))
        terms = energy.as_dict()
        if not math.isfinite(terms["total"]):
            raise DivergenceError("the energy is not finite: the flow diverges, or the masks of the images do not overlap")
        self.terms.update(terms)
        (gradient,) = torch.autograd.grad(energy.total.sum(), x)
        return terms["total"] * len(energy.total), gradient

    def penalty_change(self, space: Coordinates, x: Tensor) -> tuple[float, Tensor]:
        """Change of the penalty, and of its gradient, as its schedule goes on by one iteration."""
        x = x.detach().requires_grad_()
        ic, step = space.unpack(x), len(self.history)
        before, after = (self.problem.weight_penalty(ic, self.pair.source, step + i) for i in (-1, 0))
        if torch.equal(before, after):  # no penalty, or none with a schedule
            return 0.0, torch.zeros_like(x)
        energy, _ = self.problem.energy(ic, self.pair, step)
        change = (energy.similarity * (after - before)).sum()
        (gradient,) = torch.autograd.grad(change, x)
        return float(change.detach()), gradient

    def report(self, iteration: int, f: float) -> None:
        """Add a row to the history, and tell the progress bar."""
        self.history.append({"level": self.number, "iteration": iteration, **self.terms, "total": f})
        log.debug("level %d iteration %d: energy %.6g", self.number, iteration, f)
        report_progress(self.number, iteration, self.iterations, f)
