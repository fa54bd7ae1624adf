"""torchdiffeq, the library in which the papers solve their equations. The only module that knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rdmm.dynamics.solvers import MAX_STEPS, State
from rdmm.types import DivergenceError, Tensor


@dataclass(frozen=True)
class Settings:
    """Those of Integrator: ``rtol`` and ``atol`` of dopri5, for each entry of the state and of its gradient; ``steps`` of the others."""

    method: str
    steps: int
    rtol: float
    atol: float
    adjoint: bool


def solve(f: Callable[[State], State], y: State, times: Sequence[float], params: Sequence[Tensor], how: Settings) -> list[State]:
    """[y(t) for t in times], times increasing in (0, 1], by ``odeint_adjoint``, or by ``odeint`` without ``adjoint``.

    Args:
        params: the tensors that f closes over and that need a gradient.

    Raises:
        DivergenceError: the adaptive step went to zero, or there are too many.
    """
    from torchdiffeq import odeint, odeint_adjoint

    t = torch.tensor([0.0, *times], dtype=y[0].dtype, device=y[0].device)
    options: dict[str, Any] = {"max_num_steps": MAX_STEPS} if how.method == "dopri5" else {"step_size": 1 / how.steps}
    if how.method != "dopri5" and len(times) > 1:
        options["interp"] = "cubic"
    keywords = {"method": how.method, "rtol": how.rtol, "atol": how.atol, "options": options}
    try:
        if how.adjoint:
            out = odeint_adjoint(lambda _, y: f(y), y, t, adjoint_params=tuple(params), adjoint_options=dict(options), **keywords)
        else:
            out = odeint(lambda _, y: f(y), y, t, **keywords)
    except AssertionError as error:  # torchdiffeq's "underflow in dt" and "max_num_steps exceeded"
        raise DivergenceError(f"{how.method} could not reach t={times[-1]:g}: {error}") from error
    return [tuple(x[k] for x in out) for k in range(1, len(t))]
