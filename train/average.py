"""The running mean of a network's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.swa_utils import AveragedModel

from networks.model import Networks
from rdmm.types import Tensor


def average_of(networks: Networks, decay: float) -> AveragedModel:
    """A copy of the networks, to be updated after every step.

    Args:
        decay: weight of the mean so far. Early on it is (1 + n) / (10 + n) after n steps, if that is less: else the first weights, which
            know nothing, would stay in the mean for a thousand steps.
    """

    @torch.no_grad()
    def update(mean: Sequence[Tensor], now: Sequence[Tensor], count: Tensor | int) -> None:
        torch._foreach_lerp_(tuple(mean), tuple(now), max(1 - decay, 9 / (10 + float(count))))

    return AveragedModel(networks, multi_avg_fn=update)


__all__ = ["AveragedModel", "average_of"]
