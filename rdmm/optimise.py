"""Minimisation: L-BFGS with a strong Wolfe line search that survives divergence, and the coarse-to-fine search for
initial conditions built on it."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from rdmm import ops
from rdmm.dynamics import RDMM, InitialConditions
from rdmm.grid import Grid
from rdmm.points import PointLDDMM, controls
from rdmm.problem import Problem
from rdmm.shape import Image, Pair
from rdmm.smoother import gaussian
from rdmm.types import ConfigError, DivergenceError, Tensor
from rdmm.weights import normalise, parameters

log = logging.getLogger(__name__)

STRIDE = 30.0
"""Of the pre-weights against the momentum: one step moves them this much further. At 1 they hardly leave their start."""

History = list[dict[str, float]]
Objective = Callable[[Tensor], tuple[float, Tensor]]


stop = threading.Event()
"""Set by a signal handler: every search ends with its best iterate so far."""


@dataclass
class Trial:
    """A point of the line search: step t, value f, slope along the direction, gradient."""

    t: float
    f: float
    slope: float
    gradient: Tensor | None


class LineSearch:
    """Strong Wolfe conditions (Nocedal and Wright, algorithms 3.5 and 3.6). A trial that diverges has the value infinity,
    so the bracket closes in front of it. Steps that promise less than ``least`` of the value are not worth a trial: what they
    bring drowns in rounding and in the kinks of interpolation."""

    def __init__(self, objective: Objective, c1: float = 1e-4, c2: float = 0.9, evaluations: int = 10, least: float = 0.0) -> None:
        self.objective, self.c1, self.c2, self.evaluations, self.least = objective, c1, c2, evaluations, least

    def _trial(self, x: Tensor, direction: Tensor, t: float) -> Trial:
        try:
            f, g = self.objective(x + t * direction)
            slope = float(ops.dot(g, direction))
        except DivergenceError as error:
            log.debug("a step of %.3g diverges (%s): backing off", t, error)
            return Trial(t, math.inf, math.nan, None)
        if not (math.isfinite(f) and math.isfinite(slope)):
            return Trial(t, math.inf, math.nan, None)
        return Trial(t, f, slope, g)

    def __call__(self, x: Tensor, f0: float, g0: Tensor, direction: Tensor, t: float) -> Trial | None:
        """The accepted trial, or the best one with a lower value, or None: no progress along this direction."""
        start = Trial(0.0, f0, float(ops.dot(g0, direction)), g0)
        low, high, best = start, None, start
        for _ in range(self.evaluations):
            if stop.is_set():
                break
            new = self._trial(x, direction, t)
            if new.f < best.f:
                best = new
            if new.f > f0 + self.c1 * t * start.slope or new.f >= low.f:
                high = new
            elif abs(new.slope) <= -self.c2 * start.slope:
                return new
            else:
                if new.slope * ((high.t if high else math.inf) - low.t) >= 0:
                    high = low
                low = new
            if high is None:
                t = self._beyond(low, start)
            else:
                if abs(high.t - low.t) < 1e-6 * max(abs(low.t), 1e-12):
                    break
                t = self._between(low, high)
                if low is start and -t * start.slope < self.least * abs(f0):
                    break
        return best if best.f < f0 else None

    @staticmethod
    def _beyond(low: Trial, start: Trial) -> float:
        """Extrapolate where the slope vanishes, by 1.5 to 5 times."""
        rise = low.slope - start.slope
        guess = low.t * start.slope / -rise if rise > 0 else math.inf
        return min(max(guess, 1.5 * low.t), 5 * low.t)

    @staticmethod
    def _between(low: Trial, high: Trial) -> float:
        """Minimiser of the parabola through f, f' at ``low`` and f at ``high``, kept inside the middle 80 %."""
        width = high.t - low.t
        if not math.isfinite(high.f):
            return low.t + 0.1 * width
        curvature = high.f - low.f - low.slope * width
        share = -0.5 * low.slope * width / curvature if curvature > 0 else 0.5
        return low.t + min(max(share, 0.1), 0.9) * width


def minimise(
    objective: Objective,
    x: Tensor,
    *,
    iterations: int,
    first_step: Callable[[Tensor], float],
    memory: int = 8,
    tolerance: float = 1e-4,
    patience: int = 3,
    report: Callable[[int, float], None] = lambda iteration, f: None,
    change: Objective | None = None,
) -> tuple[Tensor, float]:
    """L-BFGS from ``x`` (n,).

    Args:
        objective: x -> (f, gradient); one evaluation per trial. It may raise DivergenceError.
        first_step: length of the first trial along a steepest-descent direction.
        tolerance, patience: stop when f has fallen by less than ``tolerance`` of itself in each of ``patience`` iterations.
        report: called after each accepted iteration.
        change: of an objective with a schedule: x -> what (f, gradient) change by from one iteration to the next.

    Returns:
        The best x and its f.

    Raises:
        DivergenceError: the objective is not finite at the start.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _lbfgs(objective, x, iterations, first_step, memory, tolerance, patience, report, change)


def _lbfgs(
    objective: Objective,
    x: Tensor,
    iterations: int,
    first_step: Callable[[Tensor], float],
    memory: int,
    tolerance: float,
    patience: int,
    report: Callable[[int, float], None],
    change: Objective | None,
) -> tuple[Tensor, float]:
    f, g = objective(x)
    if not (math.isfinite(f) and torch.isfinite(g).all()):
        raise DivergenceError(f"the energy at the start is {f}: nothing to improve on")
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=memory)
    search, slow = LineSearch(objective, least=tolerance), 0
    for iteration in range(1, iterations + 1):
        if float(g.abs().max()) == 0 or stop.is_set():
            break
        direction = _direction(g, pairs)
        if float(ops.dot(g, direction)) >= 0:
            pairs.clear()
            direction = -g
        step = 1.0 if pairs else first_step(direction)
        trial = search(x, f, g, direction, step)
        if trial is None or trial.gradient is None:
            if not pairs:
                break
            pairs.clear()  # curvature misled the search: fall back to a gradient step
            continue
        s, y = trial.t * direction, trial.gradient - g
        curvature = float(ops.dot(s, y))
        if curvature > 1e-10 * float(ops.dot(y, y)):
            pairs.append((s, y, curvature))
        slow = slow + 1 if f - trial.f < tolerance * abs(f) else 0
        x, f, g = x + s, trial.f, trial.gradient
        report(iteration, f)
        if slow >= patience:
            break
        if change is not None:
            more, gradient = change(x)
            f, g = f + more, g + gradient
    return x, f


def _direction(g: Tensor, pairs: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """-H g by the two-loop recursion."""
    q, shares = -g, []
    for s, y, curvature in reversed(pairs):
        share = float(ops.dot(s, q)) / curvature
        q = q - share * y
        shares.append(share)
    if pairs:
        s, y, curvature = pairs[-1]
        q = q * (curvature / float(ops.dot(y, y)))
    for (s, y, curvature), share in zip(pairs, reversed(shares), strict=True):
        q = q + (share - float(ops.dot(y, q)) / curvature) * s
    return q


@dataclass(frozen=True, eq=False)
class _Parameters:
    """(z, y) in one vector: m0 = K^{1/2} (K + delta)^{-1} z, and h = normalise(p + STRIDE G * y) with the start's p, both
    scaled to L2 over the domain, so that 1/2 |z|^2 is the velocity's energy and gradients do not depend on the resolution.

    G is the weights' own Gaussian: what it would take out of h moves no velocity, but makes the source term rough.
    """

    problem: Problem
    grid: Grid
    shape: torch.Size
    start: Tensor | None

    @property
    def scale(self) -> float:
        return self.grid.cell**-0.5

    def momentum(self, z: Tensor, inverse: bool = False) -> Tensor:
        return self.problem.dynamics.smoother.precondition(z, self.grid, inverse=inverse)

    def pack(self, ic: InitialConditions) -> Tensor:
        """The vector of ``ic``, whose weights are the start's."""
        parts = [self.momentum(ic.momentum, inverse=True)]
        if self.start is not None:
            parts.append(torch.zeros_like(self.start))
        return torch.cat([x.flatten() for x in parts]) / self.scale

    def unpack(self, x: Tensor) -> InitialConditions:
        size = self.shape.numel()
        momentum = self.momentum((x[:size] * self.scale).view(self.shape))
        if self.start is None:
            return InitialConditions(momentum)
        assert isinstance(self.problem.dynamics, RDMM)
        y = (x[size:] * self.scale).view(self.start.shape)
        p = parameters(self.start) + STRIDE * gaussian(y, self.problem.dynamics.weight_scale(self.grid), self.grid)
        return InitialConditions(momentum, normalise(p))

    def first_step(self, direction: Tensor) -> float:
        """The step whose velocity moves the fastest point by one voxel."""
        z = (direction[: self.shape.numel()] * self.scale).view(self.shape)
        v = self.problem.dynamics.smoother(self.momentum(z), self.grid)
        fastest = float(torch.stack([v[:, i].abs().max() / h for i, h in enumerate(self.grid.spacing)]).max())
        return 1.0 / max(fastest, 1e-12)


@dataclass(frozen=True, eq=False)
class _PointParameters:
    """The momenta of control points in one vector."""

    dynamics: PointLDDMM
    ic: InitialConditions

    def pack(self, ic: InitialConditions) -> Tensor:
        return ic.momentum.flatten()

    def unpack(self, x: Tensor) -> InitialConditions:
        return InitialConditions(x.view(self.ic.momentum.shape), None, self.ic.points)

    def first_step(self, direction: Tensor) -> float:
        """The step whose velocity moves the fastest control point by a quarter of the narrowest sigma."""
        ic = self.unpack(direction)
        v = self.dynamics.system.velocity(controls(ic), controls(ic), ic.momentum)
        return 0.25 * min(self.dynamics.smoother.sigmas) / max(float(v.square().sum(1).max().sqrt()), 1e-12)


class Optimiser(Protocol):
    """(problem, pair, start) -> better initial conditions, and what happened."""

    def __call__(self, problem: Problem, pair: Pair, ic: InitialConditions) -> tuple[InitialConditions, History]: ...


@dataclass(frozen=True)
class NoOptimiser:
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
        space: _Parameters | _PointParameters
        if isinstance(problem.dynamics, PointLDDMM):
            space = _PointParameters(problem.dynamics, replace(ic, points=controls(ic, pair.source)))
        else:
            space = _Parameters(problem, ic.grid(pair.source), ic.momentum.shape, ic.weights if optimise_weights else None)
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
            log.debug("level %d iteration %d: energy %.6g", level, iteration, f, extra={"progress": (level, iteration, iterations, f)})

        start = space.pack(ic).detach()
        x, f = minimise(
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
