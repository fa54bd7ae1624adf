"""L-BFGS with a strong Wolfe line search that survives divergence."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rdmm.runtime.interrupt import stop
from rdmm.spatial import ops
from rdmm.types import DivergenceError, Tensor

log = logging.getLogger(__name__)

History = list[dict[str, float]]

Objective = Callable[[Tensor], tuple[float, Tensor]]
"""x -> (f, gradient)."""

MIN_GROWTH, MAX_GROWTH = 1.5, 5.0
"""Factors by which one extrapolation of the line search lengthens the step, at least and at most. Not measured."""

EDGE_FRACTION = 0.1
"""An interpolated step keeps this fraction of the bracket away from its ends, so that the bracket shrinks. Not measured."""

MIN_CURVATURE = 1e-10
"""A pair (s, y) with <s, y> below this fraction of <y, y> is rounding, and is not used. Not measured."""


@dataclass
class Trial:
    """A point of the line search: step t, value f, slope along the direction, gradient."""

    t: float
    f: float
    slope: float
    gradient: Tensor | None


@dataclass(frozen=True, eq=False)
class Step:
    """An accepted step s, the change y of the gradient by it, <s, y> and <y, y>."""

    s: Tensor
    y: Tensor
    curvature: float
    square: float


class LineSearch:
    """Strong Wolfe conditions (Nocedal and Wright, algorithms 3.5 and 3.6).

    A trial that diverges has the value infinity, so the bracket closes before it. The search stops when the predicted decrease is below
    ``least`` times the value: smaller ones are lost in rounding and interpolation error.
    """

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

    def __call__(self, x: Tensor, f0: float, slope: float, direction: Tensor, t: float) -> Trial | None:
        """The accepted trial, or the best one with a lower value, or None: no progress along this direction, of the given slope."""
        start = Trial(0.0, f0, slope, None)
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
        """Extrapolate to the step at which the slope is 0, by MIN_GROWTH to MAX_GROWTH times."""
        rise = low.slope - start.slope
        guess = low.t * start.slope / -rise if rise > 0 else math.inf
        return min(max(guess, MIN_GROWTH * low.t), MAX_GROWTH * low.t)

    @staticmethod
    def _between(low: Trial, high: Trial) -> float:
        """Minimizer of the parabola through f, f' at ``low`` and f at ``high``, kept away from the ends by EDGE_FRACTION."""
        width = high.t - low.t
        if not math.isfinite(high.f):
            return low.t + EDGE_FRACTION * width
        curvature = high.f - low.f - low.slope * width
        fraction = -0.5 * low.slope * width / curvature if curvature > 0 else 0.5
        return low.t + min(max(fraction, EDGE_FRACTION), 1 - EDGE_FRACTION) * width


def minimize(
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
        memory: number of steps (s, y) from which the curvature is estimated.
        tolerance, patience: stop when f has fallen by less than ``tolerance`` of itself in each of ``patience`` iterations.
        report: called after each accepted iteration.
        change: for an objective with a schedule: x -> the change of (f, gradient) from one iteration to the next.

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
        raise DivergenceError(f"the energy at the start is {f}: there is nothing to improve")
    pairs: deque[Step] = deque(maxlen=memory)
    search, slow = LineSearch(objective, least=tolerance), 0
    for iteration in range(1, iterations + 1):
        if stop.is_set():
            break
        direction = _direction(g, pairs)
        slope, steepest = _read(ops.dot(g, direction), g.abs().max())
        if steepest == 0:
            break
        if slope >= 0:
            pairs.clear()
            direction = -g
            (slope,) = _read(ops.dot(g, direction))
        step = 1.0 if pairs else first_step(direction)
        trial = search(x, f, slope, direction, step)
        if trial is None or trial.gradient is None:
            if not pairs:
                break
            pairs.clear()  # the curvature estimate misled the search: fall back to a gradient step
            continue
        s, y = trial.t * direction, trial.gradient - g
        curvature, square = _read(ops.dot(s, y), ops.dot(y, y))
        if curvature > MIN_CURVATURE * square:
            pairs.append(Step(s, y, curvature, square))
        slow = slow + 1 if f - trial.f < tolerance * abs(f) else 0
        x, f, g = x + s, trial.f, trial.gradient
        report(iteration, f)
        if slow >= patience:
            break
        if change is not None:
            more, gradient = change(x)
            f, g = f + more, g + gradient
    return x, f


def _read(*values: Tensor) -> list[float]:
    """Several scalars by one read: each one makes the host wait, where they are on a GPU."""
    return torch.stack(values).tolist()


def _direction(g: Tensor, pairs: Sequence[Step]) -> Tensor:
    """-H g by the two-loop recursion (Nocedal and Wright, algorithm 7.4). Its scalars stay on the device."""
    q, alphas = -g, []
    for pair in reversed(pairs):
        alpha = ops.dot(pair.s, q) / pair.curvature
        q = q - alpha * pair.y
        alphas.append(alpha)
    if pairs:
        q = q * (pairs[-1].curvature / pairs[-1].square)
    for pair, alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + (alpha - ops.dot(pair.y, q) / pair.curvature) * pair.s
    return q
