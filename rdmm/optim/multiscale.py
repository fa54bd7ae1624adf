"""Coarse-to-fine search for initial conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from rdmm.dynamics.base import InitialConditions
from rdmm.dynamics.coordinates import ImageCoordinates, PointCoordinates
from rdmm.dynamics.points import PointLDDMM, controls
from rdmm.dynamics.rdmm import RDMM
from rdmm.optim.lbfgs import History, log, minimize
from rdmm.optim.problem import Problem
from rdmm.runtime.progress import report_progress
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import ConfigError, DivergenceError, Tensor


class Optimizer(Protocol):
    """(problem, pair, start) -> better initial conditions, and what happened."""

    def __call__(self, problem: Problem, pair: Pair, ic: InitialConditions) -> tuple[InitialConditions, History]: ...


@dataclass(frozen=True)
class NoOptimizer:
    """The initial conditions as they are: learned mode."""

    def __call__(self, problem: Problem, pair: Pair, ic: InitialConditions) -> tuple[InitialConditions, History]:
        return ic, []


@dataclass(frozen=True)
class LBFGS:
    """Coarse-to-fine L-BFGS on the preconditioned momentum (and the pre-weights, where they are optimised).

    Args:
        scales: of the image pyramid, increasing, in (0, 1].
        iterations: on each scale.
        shooting: resolution of the shooting grid over that of the image, one number or one per scale; None: the image's
            own, but no finer than ``voxel_of_sigma``.
        voxel_of_sigma: voxel of the shooting grid over the narrowest Gaussian, where ``shooting`` does not tell. At .845 a Gaussian
            passes a thousandth of the shortest wave that the grid holds: as little as the search (precondition's delta) leaves of it.
        tolerance: stop a scale when the energy falls by less than this part of itself, three times running.
        memory: pairs kept by L-BFGS.
        weights: whether pre-weights are optimised with the momentum; False: they stay as they start.
    """

    scales: Sequence[float] = (0.25, 0.5, 1.0)
    iterations: Sequence[int] = (60, 60, 60)
    shooting: float | Sequence[float] | None = None
    tolerance: float = 1e-4
    memory: int = 8
    weights: bool = True
    voxel_of_sigma: float = 0.845

    def __post_init__(self) -> None:
        if not self.scales or len(self.scales) != len(self.iterations):
            raise ConfigError(f"optimizer: {len(self.scales)} scales but {len(self.iterations)} iterations; give one number per scale")
        if any(not 0 < s <= 1 for s in self.scales) or list(self.scales) != sorted(self.scales):
            raise ConfigError(f"optimizer.scales must increase within (0, 1], not {list(self.scales)}")
        if any(n < 1 for n in self.iterations):
            raise ConfigError(f"optimizer.iterations must be at least 1 each, not {list(self.iterations)}; to run none use optimizer=none")
        shooting = self._shooting()
        if len(shooting) != len(self.scales) or any(s is not None and not 0 < s <= 1 for s in shooting):
            raise ConfigError(f"optimizer.shooting must be in (0, 1], one number or one per scale, not {self.shooting}")
        if self.tolerance < 0 or self.memory < 1 or not self.voxel_of_sigma > 0:
            raise ConfigError(
                "optimizer: tolerance must be >= 0, memory >= 1 and voxel_of_sigma > 0, "
                f"not {self.tolerance}, {self.memory}, {self.voxel_of_sigma}"
            )

    def __call__(self, problem: Problem, pair: Pair, ic: InitialConditions) -> tuple[InitialConditions, History]:
        history: History = []
        for level, (scale, iterations, share) in enumerate(zip(self.scales, self.iterations, self._shooting(), strict=True)):
            level_pair = pair.scaled(scale)
            if isinstance(pair.fixed, Image):
                grid = level_pair.fixed.grid
                if share is None:
                    share = min(1.0, min(grid.spacing) / (self.voxel_of_sigma * problem.dynamics.smoother.narrowest(grid)))
                ic = ic.resized(pair.fixed.grid.scaled(scale * share).shape)
            ic = self._level(problem, level_pair, ic, iterations, level, history)
        return ic, history

    def _shooting(self) -> list[float | None]:
        if self.shooting is None or isinstance(self.shooting, int | float):
            return [self.shooting] * len(self.scales)
        return list(self.shooting)

    def _level(
        self, problem: Problem, pair: Pair, ic: InitialConditions, iterations: int, level: int, history: History
    ) -> InitialConditions:
        optimise_weights = self.weights and isinstance(problem.dynamics, RDMM) and ic.weights is not None
        fixed_weights = None if optimise_weights else ic.weights
        space: ImageCoordinates | PointCoordinates
        if isinstance(problem.dynamics, PointLDDMM):
            space = PointCoordinates(problem.dynamics, replace(ic, points=controls(ic, pair.source)))
        else:
            space = ImageCoordinates(problem.dynamics, ic.grid(pair.source), ic.momentum.shape, ic.weights if optimise_weights else None)
        terms: dict[str, float] = {}
        offset = len(history)

        def initial(x: Tensor) -> InitialConditions:
            new = space.unpack(x)
            return new if optimise_weights else InitialConditions(new.momentum, fixed_weights, new.points)

        def objective(x: Tensor) -> tuple[float, Tensor]:
            x = x.detach().requires_grad_()
            energy, _ = problem.energy(initial(x), pair, len(history))
            total = energy.total.sum()
            if not torch.isfinite(total):
                raise DivergenceError("the energy is not finite")
            terms.update(energy.as_dict())
            (gradient,) = torch.autograd.grad(total, x)
            return float(total.detach()), gradient

        def change(x: Tensor) -> tuple[float, Tensor]:
            """The penalty's schedule goes on by one iteration; it asks for no shooting."""
            x = x.detach().requires_grad_()
            before, after = (problem.weight_penalty(initial(x), pair.source, len(history) + i).sum() for i in (-1, 0))
            if not after.requires_grad:  # no penalty
                return 0.0, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(after - before, x)
            return float((after - before).detach()), gradient

        def report(iteration: int, f: float) -> None:
            history.append({"level": level, "iteration": iteration, **terms, "total": f})
            log.debug("level %d iteration %d: energy %.6g", level, iteration, f)
            report_progress(level, iteration, iterations, f)

        start = space.pack(ic).detach()
        x, f = minimize(
            objective,
            start,
            iterations=iterations,
            first_step=space.first_step,
            memory=self.memory,
            tolerance=self.tolerance,
            report=report,
            change=change if optimise_weights else None,
        )
        log.info("level %d, momentum of %s: energy %.5f after %d iterations", level, tuple(ic.momentum.shape[2:]), f, len(history) - offset)
        with torch.no_grad():
            return initial(x)
