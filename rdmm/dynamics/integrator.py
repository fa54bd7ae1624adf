"""Integration of geodesics over t in [0, 1]. The only module that knows torchdiffeq."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch.utils.checkpoint import checkpoint

from rdmm.types import ConfigError, DivergenceError, Tensor

Method = Literal["semi_lagrangian", "dopri5", "rk4", "midpoint", "euler"]


State = tuple[Tensor, ...]

SMALL = 2**16
"""Numbers in a momentum whose whole trajectory is kept for the gradient, rather than each step computed again: it is a few
hundred megabytes at most."""

COURANT = 1.5
"""Voxels that a step may cross: within the stability of Runge-Kutta's method (2.8), where it still conserves energy."""

LONGEST = 8
"""Times as many steps as asked for that a fast flow may take; a faster one has diverged."""


class Eulerian(Protocol):
    """A right-hand side d_t y = f(t, y)."""

    def __call__(self, t: Tensor, y: State, /) -> State: ...


class SemiLagrangian(Protocol):
    """One step of length dt from y, and the voxels that y would cross in a unit of time."""

    def speed(self, y: State, /) -> float: ...

    def step(self, y: State, dt: float, /) -> State: ...


@dataclass(frozen=True)
class Integrator:
    """y(0) -> y(1).

    Args:
        method: ``semi_lagrangian`` (maps by composition), or of torchdiffeq ``dopri5`` (adaptive), ``rk4``, ``midpoint``, ``euler``.
        rtol, atol: of the adaptive method.
        steps: of the others; of ``semi_lagrangian`` at least: it takes more where a step would cross more than COURANT
            voxels, up to LONGEST times as many.
        adjoint: gradients at constant memory, by the reverse-time adjoint (torchdiffeq) or by recomputing each step
            (semi_lagrangian, where the momentum is larger than SMALL); False: plain backpropagation through all steps.
    """

    method: Method = "semi_lagrangian"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 10
    adjoint: bool = True

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"integrator.method must be one of {', '.join(get_args(Method))}, not {self.method!r}")
        if self.steps < 1 or self.rtol <= 0 or self.atol <= 0:
            raise ConfigError(f"integrator: steps must be >= 1 and tolerances > 0, not {self.steps}, {self.rtol}, {self.atol}")

    @property
    def eulerian(self) -> bool:
        return self.method != "semi_lagrangian"

    def __call__(self, f: Eulerian | SemiLagrangian, y0: State, params: Sequence[Tensor] = ()) -> State:
        """y(1).

        Args:
            f: Eulerian for torchdiffeq's methods, SemiLagrangian for the own.
            params: every tensor that f closes over and that needs a gradient; the adjoint sees no others.

        Raises:
            DivergenceError: the state left the finite numbers, or the adaptive step went to zero.
        """
        return self.trajectory(f, y0, params, (1.0,))[-1]

    def trajectory(self, f: Eulerian | SemiLagrangian, y0: State, params: Sequence[Tensor], times: Sequence[float]) -> list[State]:
        """[y(t) for t in times], times increasing in [0, 1]; fixed steps are spread so that each time is met."""
        states, y, now = [], y0, 0.0
        for t in times:
            if t > now:
                y = self._advance(f, y, params, now, t)
                now = t
            states.append(y)
        return states

    def _advance(self, f, y: State, params: Sequence[Tensor], start: float, end: float) -> State:  # type: ignore[no-untyped-def]
        steps = max(1, math.ceil(self.steps * (end - start) - 1e-6))
        if not self.eulerian:
            steps = self._enough(f, y, steps, end - start)
            dt = (end - start) / steps
            for _ in range(steps):
                if self.adjoint and torch.is_grad_enabled() and y[0].numel() > SMALL:
                    y = checkpoint(f.step, y, dt, use_reentrant=False)
                else:
                    y = f.step(y, dt)
            return y
        from torchdiffeq import odeint, odeint_adjoint

        t = torch.linspace(start, end, 2, dtype=torch.float64 if y[0].dtype == torch.float64 else torch.float32, device=y[0].device)
        options: dict[str, float] = {"max_num_steps": 200} if self.method == "dopri5" else {"step_size": (end - start) / steps}
        keywords = {"method": self.method, "rtol": self.rtol, "atol": self.atol, "options": options}
        wanted = tuple(p for p in params if p.requires_grad) if self.adjoint and torch.is_grad_enabled() else ()
        try:
            if wanted:
                out = odeint_adjoint(f, y, t, adjoint_params=wanted, adjoint_options=dict(options), **keywords)
            else:
                out = odeint(f, y, t, **keywords)
        except AssertionError as error:  # torchdiffeq's "underflow in dt" and "max_num_steps exceeded"
            raise DivergenceError(f"{self.method} could not reach t={end:g}: {error}") from error
        return tuple(x[-1] for x in out)

    @staticmethod
    @torch.no_grad()
    def _enough(f: SemiLagrangian, y: State, steps: int, duration: float) -> int:
        """``steps``, or as many as keep to COURANT."""
        voxels = f.speed(y) * duration
        if not voxels < COURANT * LONGEST * steps:
            raise DivergenceError(f"the flow crosses {voxels:.3g} voxels: too many for {LONGEST} times {steps} steps")
        return max(steps, math.ceil(voxels / COURANT))
