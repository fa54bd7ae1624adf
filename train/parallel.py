"""Several processes (torchrun), each with its part of every batch.

One all-reduce after the backward pass averages the gradients. DistributedDataParallel would average inside the backward pass, and then
all processes would wait for one whose pair diverged. Here such a process sends zeros and a flag.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from rdmm.runtime.resources import select_device
from rdmm.types import ConfigError, ResourceError, Tensor


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

    def union(self, names: Iterable[str]) -> list[str]:
        """The names of all ranks, sorted."""
        found: list[list[str]] = [list(names)] * self.size
        if self.size > 1:
            dist.all_gather_object(found, list(names))
        return sorted({name for own in found for name in own})

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


def _from_torchrun(name: str, default: int) -> int:
    """A number that torchrun sets for each of its processes. Raises ConfigError if it is none."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"the environment variable {name} must be a whole number, as torchrun sets it; got {text!r}")
    return int(text)


def local_device(name: str) -> torch.device:
    """The device of this process: of several processes on one machine, each has a GPU of its own.

    Raises:
        ConfigError: there is no such device, or not one for each process.
    """
    device = select_device(name)
    if device.type == "cpu" or _from_torchrun("WORLD_SIZE", 1) == 1:
        return device
    if device.index is not None:
        raise ConfigError(f"device={name}: all processes would share one GPU; give device=cuda, then each takes its own")
    own, found = _from_torchrun("LOCAL_RANK", 0), torch.cuda.device_count()
    if own >= found:
        raise ConfigError(f"device=cuda: PyTorch finds {found} GPUs here, too few for the processes; use --nproc-per-node={found}")
    return torch.device("cuda", own)


@contextlib.contextmanager
def world(timeout: float, device: torch.device) -> Iterator[World]:
    """The processes that torchrun started (by its environment), or this one alone.

    Args:
        timeout: seconds that one process waits for another.
        device: of this process; tensors on GPUs travel by NCCL, all others by gloo.
    """
    size = _from_torchrun("WORLD_SIZE", 1)
    if size == 1:
        yield World()
        return
    # This module's functions take the process group of its import time as a default argument. An import after init_process_group would
    # keep gloo's threads alive, and such a thread can kill the process when it frees a tensor while the interpreter ends.
    importlib.import_module("torch.distributed.nn.functional")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=timedelta(seconds=timeout))
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
