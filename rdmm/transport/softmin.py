"""The soft minimum of transport on grids: a log-sum-exp against a Gaussian, model (36).

    L(g)(x) = log sum_y exp(g(y) - |x - y|^2 / (2 eps)), computed along one axis after the other, since the Gaussian is separable.

The potential of Sinkhorn's iteration is f = -eps L(log b + g / eps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rdmm.kernels.available import has_numba
from rdmm.types import Tensor

LOG_ZERO = -1e30
"""Logarithm that stands for 0. It is finite, so that sums and differences are never NaN."""

CHUNK_ENTRIES = 2**18
"""Largest temporary tensor of the torch version, in entries, and at most a quarter of the volume. Not measured."""


def log_convolve(g: Tensor, alpha: Sequence[float]) -> Tensor:
    """L(g) of log-densities g (k, *s), which may be overwritten; alpha = spacing^2 / eps of each axis. No gradient flows."""
    if g.device.type == "cpu" and g.dtype == torch.float32 and has_numba():
        from rdmm.kernels.softmin_grid import log_convolve as compiled

        return compiled(g, alpha)
    for axis, a in zip(range(g.ndim - len(alpha), g.ndim), alpha, strict=True):
        g = _along(g, axis, a)
    return g


def _along(g: Tensor, axis: int, alpha: float) -> Tensor:
    """log sum_j exp(g_j - alpha (i - j)^2 / 2) along one axis, by blocks in which exp(-alpha (i - j)^2 / 2) does not underflow."""
    lines = g.movedim(axis, -1)
    n = lines.shape[-1]
    size = max(1, min(n, 16, 1 + int(math.sqrt(160 / alpha))))
    blocks = -(-n // size)
    flat = torch.nn.functional.pad(lines.reshape(-1, n), (0, blocks * size - n), value=LOG_ZERO).view(-1, blocks, size)
    step = max(1, min(CHUNK_ENTRIES, g.numel() // 4) // (blocks * blocks * size))
    out = torch.cat([_blocks(flat[k : k + step], alpha) for k in range(0, len(flat), step)])
    return out[:, :n].reshape(lines.shape).movedim(-1, axis)


def _blocks(x: Tensor, alpha: float) -> Tensor:
    """log sum_j exp(x_j - alpha (i - j)^2 / 2) for lines x (l, blocks, size); returns (l, blocks * size).

    With i = I + s, j = J + t, I and J the middles of blocks and D = I - J,
        -(i - j)^2 / 2 = -D^2 / 2 - D s + D t - (s - t)^2 / 2:
    one exponential for each input and output *block*, and one small product with exp(-alpha (s - t)^2 / 2).
    """
    _, blocks, size = x.shape
    t = torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2
    middle = torch.arange(blocks, dtype=x.dtype, device=x.device) * size
    d = middle.view(-1, 1, 1) - middle.view(1, -1, 1)
    e = x.unsqueeze(1) + alpha * d * t  # (l, I, J, t)
    top = e.amax(-1, keepdim=True)
    product = e.sub_(top).exp_() @ (-0.5 * alpha * (t.view(-1, 1) - t) ** 2).exp()
    exponent = top - alpha * d * (0.5 * d + t)  # (l, I, J, s)
    highest = exponent.amax(2, keepdim=True)
    total = (exponent.sub_(highest).exp_() * product).sum(2)
    return (highest.squeeze(2) + total.log()).flatten(1)
