"""Explicit Runge-Kutta methods for d_t y = f(y), and gradients by the reverse-time adjoint."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rdmm.spatial import ops
from rdmm.types import DivergenceError, Tensor

State = tuple[Tensor, ...]
Rate = Callable[[State], State]

ROUNDING = 1e-6
"""Times that differ by less are equal."""

FIRST_STEP = 0.2
"""What an adaptive method tries first, of the whole time."""

SAFETY, SHRINKS, GROWS = 0.9, 0.2, 10.0
"""The next step is that whose error would be the tolerated one, times SAFETY; at least SHRINKS and at most GROWS times this step."""

MAX_STEPS = 200
"""An adaptive method that needs more steps, or rejects as many, gives up."""


@dataclass(frozen=True)
class Method:
    """A Butcher tableau.

    Args:
        stages: a_kj of each stage but the first: k_k = f(y + dt sum_j a_kj k_j).
        weights: b_j of the step y + dt sum_j b_j k_j.
        errors: of an adaptive method, e_j of its error dt sum_j e_j k_j; the last k is the rate at the end of the step.
    """

    stages: Sequence[Sequence[float]]
    weights: Sequence[float]
    errors: Sequence[float] = ()


EULER = Method([], [1])
MIDPOINT = Method([[1 / 2]], [0, 1])
RK4 = Method([[1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])
DOPRI5 = Method(
    [
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    ],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40],
)
"""Dormand and Prince, order 5, with an error of order 4."""

METHODS = {"euler": EULER, "midpoint": MIDPOINT, "rk4": RK4, "dopri5": DOPRI5}


def moved(y: State, dt: float, weights: Sequence[float], rates: Sequence[State]) -> State:
    """y + dt sum_j weights_j rates_j."""
    terms = [(dt * w, k) for w, k in zip(weights, rates, strict=False) if w]
    out = []
    for i, x in enumerate(y):
        for n, (w, k) in enumerate(terms):
            x = x.add_(k[i], alpha=w) if n else x.add(k[i], alpha=w)
        out.append(x)
    return tuple(out)


def runge_kutta_step(f: Rate, y: State, dt: float, method: Method = RK4, first: State | None = None) -> tuple[State, list[State]]:
    """The state after one step, and the rates of its stages; ``first`` is f(y), where it is known."""
    rates = [f(y) if first is None else first]
    for stage in method.stages:
        rates.append(f(moved(y, dt, stage, rates)))
    return moved(y, dt, method.weights, rates), rates


@dataclass(frozen=True)
class Step:
    """A step from y at t, with the rate ``first`` there, to ``end``; ``last``: the rate there."""

    t: float
    dt: float
    y: State
    first: State
    end: State
    last: State | None

    def at(self, t: float, f: Rate) -> State:
        """The state at a time in the step: Hermite's cubic."""
        s = (t - self.t) / self.dt
        if s > 1 - ROUNDING:
            return self.end
        last = f(self.end) if self.last is None else self.last
        start = moved(self.y, 1.0, [s * s * (2 * s - 3), s * s * (3 - 2 * s)], [self.y, self.end])
        return moved(start, self.dt, [s * (1 - s) ** 2, s * s * (s - 1)], [self.first, last])


@dataclass(frozen=True)
class Solver:
    """y(0) -> y(t).

    Args:
        steps: in a unit of time, of a method that is not adaptive.
        rtol: tolerated error of a step, of an adaptive method: root mean square of each part of the state, over that of the part.
    """

    method: Method
    steps: int
    rtol: float

    def path(self, f: Rate, y: State, times: Sequence[float], atol: Sequence[float], span: float = 1.0) -> list[State]:
        """[y(t) for t in times], times increasing in (0, span]. The steps are those of y(span).

        Args:
            atol: what is tolerated of each part of the state besides; parts without one are not looked at.
        """
        steps = self._adaptive(f, y, atol, span) if self.method.errors else self._equal(f, y, span)
        states: list[State] = []
        for step in steps:
            while len(states) < len(times) and times[len(states)] <= step.t + step.dt + ROUNDING:
                states.append(step.at(times[len(states)], f))
            if len(states) == len(times):
                break
        return states

    def _equal(self, f: Rate, y: State, span: float) -> Iterator[Step]:
        count = max(1, math.ceil(span * self.steps - ROUNDING))
        for k in range(count):
            end, rates = runge_kutta_step(f, y, span / count, self.method)
            yield Step(k * span / count, span / count, y, rates[0], end, None)
            y = end

    def _adaptive(self, f: Rate, y: State, atol: Sequence[float], span: float) -> Iterator[Step]:
        t, dt, first = 0.0, FIRST_STEP * span, f(y)
        for _ in range(MAX_STEPS):
            dt = (span - t) / math.ceil((span - t) / dt - ROUNDING)
            end, rates = runge_kutta_step(f, y, dt, self.method, first)
            rates.append(f(end))
            error = self._error(y, end, dt, rates, atol)
            if error <= 1:
                yield Step(t, dt, y, first, end, rates[-1])
                t, y, first = t + dt, end, rates[-1]
                if t > span - ROUNDING:
                    return
            factor = SAFETY * error ** (-1 / 5) if error > 0 else GROWS
            dt *= min(max(factor, SHRINKS), GROWS if error <= 1 else 1.0) if math.isfinite(error) else SHRINKS
            if dt < ROUNDING * span:
                raise DivergenceError(f"dopri5 could not reach t={span:g}: at t={t:.3g} its steps have become {dt:.1g} long")
        raise DivergenceError(f"dopri5 could not reach t={span:g}: {MAX_STEPS} steps ended at t={t:.3g}; raise integrator.rtol")

    def _error(self, y: State, end: State, dt: float, rates: Sequence[State], atol: Sequence[float]) -> float:
        """The error of a step over the tolerated one, of the part in which it is largest."""
        largest = 0.0
        for i, least in enumerate(atol):
            (error,) = moved((torch.zeros_like(y[i]),), dt, self.method.errors, [(k[i],) for k in rates])
            tolerated = least + self.rtol * max(_size(y[i]), _size(end[i]))
            size = _size(error)
            largest = max(largest, size / tolerated if size else 0.0) if math.isfinite(size) else math.inf
        return largest


def _size(x: Tensor) -> float:
    """Root mean square."""
    x = x.detach().flatten()
    return math.sqrt(float(ops.dot(x, x)) / x.numel())


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, solver: Solver, f: Rate, times: Sequence[float], atol: float, parts: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        states = solver.path(f, tensors[:parts], times, [atol] * parts)
        ends = tuple(itertools.chain(*states))
        ctx.save_for_backward(*tensors[parts:], *ends)
        ctx.solver, ctx.f, ctx.times, ctx.parts = solver, f, times, parts
        return ends

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        n, count = ctx.parts, len(ctx.saved_tensors) - len(gradients)
        params, ends = ctx.saved_tensors[:count], ctx.saved_tensors[count:]

        def rate(state: State) -> State:
            """d_s (y, a, b) in s = -t, with a the gradient by y(t) and b that by the parameters: -f, a^T df/dy, a^T df/dp."""
            with torch.enable_grad():
                y = tuple(x.detach().requires_grad_() for x in state[:n])
                rates = ctx.f(y)
                slopes = torch.autograd.grad(rates, (*y, *params), state[n : 2 * n], materialize_grads=True)
            return *(-x.detach() for x in rates), *slopes

        a: State = tuple(torch.zeros_like(x) for x in ends[:n])
        b: State = tuple(torch.zeros_like(p) for p in params)
        for k, (start, t) in reversed(list(enumerate(itertools.pairwise((0.0, *ctx.times))))):
            at = slice(k * n, (k + 1) * n)
            a = tuple(x + g for x, g in zip(a, gradients[at], strict=True))
            (end,) = ctx.solver.path(rate, (*ends[at], *a, *b), (t - start,), [0.0] * (2 * n), t - start)
            a, b = end[n : 2 * n], end[2 * n :]
        return None, None, None, None, None, *a, *b


def adjoint_path(solver: Solver, f: Rate, y: State, times: Sequence[float], atol: float, params: Sequence[Tensor]) -> list[State]:
    """``solver.path``, with gradients by y and ``params`` that solve (y, a) back from the end: no trajectory is kept."""
    ends = _Adjoint.apply(solver, f, times, atol, len(y), *y, *params)
    return [ends[k : k + len(y)] for k in range(0, len(ends), len(y))]
