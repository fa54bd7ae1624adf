"""Several processes (torchrun), each with its part of every batch.

One all-reduce after the backward pass averages the gradients. DistributedDataParallel would average inside the backward pass, and then
all processes would wait for one whose pair diverged. Here such a process sends zeros and a flag.
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
    """This process (``rank``) among ``size``."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean_gradients(self, parameters: Sequence[Tensor], good: bool, stop: bool) -> tuple[int, bool]:
        """Replace each gradient by its mean over the ranks whose step is ``good``.

        Args:
            good: whether this rank has finite gradients.
            stop: whether this rank was asked to stop.

        Returns:
            The number of good ranks, and whether any rank was asked to stop.
        """
        if self.size == 1:
            return int(good), stop
        flat = torch.cat([p.grad.flatten() if good and p.grad is not None else torch.zeros_like(p).flatten() for p in parameters])
        flat = torch.cat([flat, flat.new_tensor([float(good), float(stop)])])
        self._all_reduce(flat)
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
            self._all_reduce(x)
        return x.tolist()

    def broadcast(self, text: str) -> str:
        """The text of the first rank, on all ranks."""
        box = [text]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    @staticmethod
    def _all_reduce(x: Tensor) -> None:
        try:
            dist.all_reduce(x)
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise ResourceError(f"another process of this run has ended ({text}); resume=true goes on from the last checkpoint") from error


@contextlib.contextmanager
def world(timeout: float) -> Iterator[World]:
    """The processes that torchrun started (by its environment), or this one alone.

    Args:
        timeout: seconds that one process waits for another.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    # This module's functions take the process group of its import time as a default argument. An import after init_process_group would
    # keep gloo's threads alive, and such a thread can kill the process when it frees a tensor while the interpreter ends.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
