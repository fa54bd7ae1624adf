"""Integration of geodesics over t in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch.utils.checkpoint import checkpoint

from rdmm.dynamics import papers_solver
from rdmm.dynamics.solvers import METHODS, ROUNDING, Solver, State, adjoint_path
from rdmm.types import ConfigError, DivergenceError, Tensor, require_finite_fields

Method = Literal["semi_lagrangian", "dopri5", "rk4", "midpoint", "euler"]

Library = Literal["rdmm", "torchdiffeq"]

KEPT_PER_STEP = 10
"""What a step keeps for the backward pass, in sizes of the state: 5.5 for LDDMM, 8 for RDMM with two Gaussians, 9 with five."""

MOST_KEPT = 2**29
"""Bytes that a trajectory may keep. Where it would be more, steps are checkpointed: recomputed in the backward pass."""

COURANT = 1.5
"""Voxels that a step may cross. Runge-Kutta is stable up to 2.8; at 1.5 it still conserves energy."""

MAX_STEP_FACTOR = 8
"""A fast flow may take up to this many times ``steps``; beyond it, DivergenceError."""


class Eulerian(Protocol):
    """A right-hand side d_t y = f(y)."""

    def __call__(self, y: State, /) -> State: ...


class SemiLagrangian(Protocol):
    """One step of length dt from y, and the voxels that y crosses in a unit of time."""

    def speed(self, y: State, /) -> float: ...

    def step(self, y: State, dt: float, /) -> State: ...


@dataclass(frozen=True)
class Integrator:
    """y(0) -> y(1).

    Args:
        method: ``semi_lagrangian``, or a Runge-Kutta method for all of the state: ``dopri5`` (adaptive), ``rk4``, ``midpoint``, ``euler``.
            Semi-Lagrangian means maps by composition for images, and RK4 steps for points.
        rtol, atol: tolerated error of a step of the adaptive method, root mean square: rtol times the size of the momentum, map, ...,
            and atol. Of gradients, rtol alone: they have no scale of their own.
        steps: number of steps of the others. ``semi_lagrangian`` takes more where a step would cross more than COURANT voxels (of
            points: narrowest sigmas), up to MAX_STEP_FACTOR times as many.
        library: whose Runge-Kutta methods: ``rdmm``, or ``torchdiffeq`` as in the papers' code, which takes longer; its rtol and atol are
            for each entry instead of the root mean square.
        adjoint: gradients at constant memory, by the reverse-time adjoint, or by recomputing each step
            (semi_lagrangian, where the trajectory would take more than MOST_KEPT bytes); False: plain backpropagation through all steps.
    """

    method: Method = "semi_lagrangian"
    rtol: float = 1e-4
    atol: float = 1e-5
    steps: int = 10
    adjoint: bool = True
    library: Library = "rdmm"

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if self.method not in get_args(Method):
            raise ConfigError(f"integrator.method must be one of {', '.join(get_args(Method))}, not {self.method!r}")
        if self.library not in get_args(Library):
            raise ConfigError(f"integrator.library must be one of {', '.join(get_args(Library))}, not {self.library!r}")
        if self.library == "torchdiffeq" and not self.eulerian:
            raise ConfigError(
                "integrator.library=torchdiffeq has no semi_lagrangian method; set integrator.method=dopri5, rk4, midpoint or euler"
            )
        if self.steps < 1 or self.rtol <= 0 or self.atol <= 0:
            raise ConfigError(f"integrator: steps must be >= 1 and tolerances > 0, not {self.steps}, {self.rtol}, {self.atol}")

    @property
    def eulerian(self) -> bool:
        return self.method != "semi_lagrangian"

    def __call__(self, f: Eulerian | SemiLagrangian, y0: State, params: Sequence[Tensor] = ()) -> State:
        """y(1).

        Args:
            f: SemiLagrangian for ``semi_lagrangian``, Eulerian for the other methods.
            params: every tensor that f closes over and that needs a gradient; the adjoint sees no others.

        Raises:
            DivergenceError: the state left the finite numbers, or the adaptive step went to zero.
        """
        return self.trajectory(f, y0, params, (1.0,))[-1]

    def trajectory(self, f: Eulerian | SemiLagrangian, y0: State, params: Sequence[Tensor], times: Sequence[float]) -> list[State]:
        """[y(t) for t in times], times increasing in [0, 1].

        The steps are those of y(1), whatever the times. A time within a step is reached by a part of the step
        (semi_lagrangian), or interpolated.
        """
        return self._solve(f, y0, params, times) if self.eulerian else self._step(f, y0, times)  # type: ignore[arg-type]

    def _step(self, f: SemiLagrangian, y: State, times: Sequence[float]) -> list[State]:
        steps = self._step_count(f, y)
        kept = steps * KEPT_PER_STEP * sum(x.numel() * x.element_size() for x in y)
        recomputes = self.adjoint and torch.is_grad_enabled() and kept > MOST_KEPT

        def advanced(y: State, dt: float) -> State:
            return checkpoint(f.step, y, dt, use_reentrant=False, preserve_rng_state=False) if recomputes else f.step(y, dt)

        done, states = 0, []
        for t in times:
            whole = math.floor(t * steps + ROUNDING)
            for _ in range(whole - done):
                y = advanced(y, 1 / steps)
            done, rest = whole, t - whole / steps
            states.append(advanced(y, rest) if rest > ROUNDING else y)
        return states

    def _solve(self, f: Eulerian, y: State, params: Sequence[Tensor], times: Sequence[float]) -> list[State]:
        later = [t for t in times if t > ROUNDING]
        wanted = [p for p in params if p.requires_grad]
        adjoint = self.adjoint and torch.is_grad_enabled() and any(x.requires_grad for x in (*y, *wanted))
        states: list[State] = []
        if later and self.library == "torchdiffeq":
            how = papers_solver.Settings(self.method, self.steps, self.rtol, self.atol, adjoint)
            states = papers_solver.solve(f, y, later, wanted, how)
        elif later and adjoint:
            states = adjoint_path(self._solver, f, y, later, self.atol, wanted)
        elif later:
            states = self._solver.path(f, y, later, [self.atol] * len(y))
        return [y] * (len(times) - len(later)) + states

    @property
    def _solver(self) -> Solver:
        return Solver(METHODS[self.method], self.steps, self.rtol)

    @torch.no_grad()
    def _step_count(self, f: SemiLagrangian, y: State) -> int:
        """``steps``, or more where a step would cross more than COURANT voxels."""
        voxels = f.speed(y)
        if not voxels < COURANT * MAX_STEP_FACTOR * self.steps:
            raise DivergenceError(f"the flow crosses {voxels:.3g} voxels: too many for {MAX_STEP_FACTOR} times {self.steps} steps")
        return max(self.steps, math.ceil(voxels / COURANT))
