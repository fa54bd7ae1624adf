"""Several processes (torchrun), each with its share of every batch.

Gradients are averaged by one all-reduce after the backward pass rather than inside DistributedDataParallel: a rank whose pair
diverges sends zeros and says so, and no other waits for it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from rdmm.types import ResourceError, Tensor


@dataclass(frozen=True)
class World:
    """This process among ``size``."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean_gradients(self, parameters: Sequence[Tensor], good: bool, stop: bool) -> tuple[int, bool]:
        """Each gradient becomes its mean over the ranks whose step is ``good``; their number, and whether any is told to stop."""
        if self.size == 1:
            return int(good), stop
        flat = torch.cat([p.grad.flatten() if good and p.grad is not None else torch.zeros_like(p).flatten() for p in parameters])
        flat = torch.cat([flat, flat.new_tensor([float(good), float(stop)])])
        self._reduced(flat)
        count = round(float(flat[-2]))
        start = 0
        for p in parameters:
            p.grad = (flat[start : start + p.numel()] / max(count, 1)).view_as(p)
            start += p.numel()
        return count, bool(flat[-1] > 0)

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the ranks."""
        x = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            self._reduced(x)
        return x.tolist()

    def same(self, text: str) -> str:
        """The first rank's text, on all of them."""
        box = [text]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    @staticmethod
    def _reduced(x: Tensor) -> None:
        try:
            dist.all_reduce(x)
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise ResourceError(f"another process of this run has gone ({text}); the last checkpoint stands: resume=true") from error


@contextlib.contextmanager
def world(timeout: float) -> Iterator[World]:
    """The processes that torchrun started (by its environment), or this one alone.

    Args:
        timeout: seconds that one waits for another.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    # Its functions keep the group that stands when they are defined as their default. Loaded later, it would keep gloo's threads alive
    # after the group's end, and one that lets go of a tensor while the interpreter ends kills the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
