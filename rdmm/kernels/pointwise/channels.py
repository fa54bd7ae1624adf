"""From one channel of two images to batches, with gradients: what the measures of this package share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from rdmm.types import Tensor

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None], float]
"""(a, b, weights, out) -> value, all flat. Weights are empty where they are 1 everywhere; the gradient by a goes to ``out`` if given."""


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor | None, measure: Measure) -> Tensor:
        images = [x.detach().contiguous().flatten(2).numpy() for x in (a, b)]
        weights = images[0][:, :1, :0] if weight is None else weight.detach().contiguous().flatten(2).numpy()
        values = np.zeros(a.shape[:2])
        gradients = [np.empty_like(x) if needed else None for x, needed in zip(images, ctx.needs_input_grad[:2], strict=True)]
        for which, gradient in enumerate(gradients):
            if which == 1 and gradient is None:
                continue
            for i in np.ndindex(*a.shape[:2]):
                out = None if gradient is None else gradient[i]
                values[i] = measure(images[which][i], images[1 - which][i], weights[i[0], 0], out)
        ctx.save_for_backward(*(None if g is None else torch.from_numpy(g).view(a.shape) / a.shape[1] for g in gradients))
        return torch.from_numpy(values.mean(1)).to(a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if x is None else x * g.view(-1, *(1,) * (x.ndim - 1)) for x in ctx.saved_tensors), None, None


def compare(measure: Measure, a: Tensor, b: Tensor, weight: Tensor | None) -> Tensor:
    """(b,) mean over channels of a symmetric measure of a and b (b, c, *s) with the weight (b, 1, *s) or None; gradients to a and b."""
    batch = (max(len(x) for x in (a, b, weight) if x is not None), *(-1,) * (a.ndim - 1))
    weight = None if weight is None else weight.to(a.dtype).expand(batch)
    return _Compare.apply(a.expand(batch), b.to(a.dtype).expand(batch), weight, measure)
