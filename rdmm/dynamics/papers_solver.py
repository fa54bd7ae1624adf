"""torchdiffeq, the library in which the papers solve their equations. The only module that knows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

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

    def by_adjoint(*y: Tensor) -> State:
        return odeint_adjoint(lambda _, y: f(y), y, t, adjoint_params=tuple(params), adjoint_options=dict(options), **keywords)

    if how.adjoint:
        out = _Guarded.apply(by_adjoint, params, len(y), *y, *params)
    else:
        with _divergence_errors():
            out = odeint(lambda _, y: f(y), y, t, **keywords)
    return [tuple(x[k] for x in out) for k in range(1, len(t))]


@contextlib.contextmanager
def _divergence_errors() -> Iterator[None]:
    """torchdiffeq's "underflow in dt" and "max_num_steps exceeded" are assertions."""
    try:
        yield
    except AssertionError as error:
        raise DivergenceError(f"torchdiffeq could not solve the equations: {error}") from error


class _Guarded(torch.autograd.Function):
    """A function of y and, by closure, of ``params``, whose errors are DivergenceErrors in the backward pass, too."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., State], params: Sequence[Tensor], parts: int, *tensors: Tensor) -> State:
        with torch.enable_grad(), _divergence_errors():
            y = tuple(x.detach().requires_grad_() for x in tensors[:parts])
            ctx.inputs, ctx.out = (*y, *params), function(*y)
        return tuple(x.detach() for x in ctx.out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        with _divergence_errors():
            return None, None, None, *torch.autograd.grad(ctx.out, ctx.inputs, gradients, materialize_grads=True)
