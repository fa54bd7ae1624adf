"""What can be used for a tensor: the compiled kernels, and its values on the host; and how many threads the kernels run on."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import lru_cache

import torch

from rdmm.types import MAX_THREADS, Tensor, require_whole

log = logging.getLogger(__name__)


@lru_cache
def has_numba() -> bool:
    """Whether numba can be imported."""
    return importlib.util.find_spec("numba") is not None


def has_kernels(x: Tensor) -> bool:
    """Whether the compiled kernels can be used for a tensor: it is on the CPU, float32 or float64, and numba is installed."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and has_numba()


def is_on_host(x: Tensor) -> bool:
    """Whether a value of a tensor can be read at once: it is on the CPU. Elsewhere, reading makes the host wait for the device."""
    return x.device.type == "cpu"


def set_threads(threads: int | None) -> None:
    """Set the number of threads of torch and of the compiled kernels; None leaves it as it is.

    No more than the cores are used: more only wait for each other, and cut products of matrices into other sums.

    Raises:
        ConfigError: ``threads`` is no number from 1 to MAX_THREADS.
    """
    if threads is None:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if require_whole("threads", threads, 1, MAX_THREADS) > cores:
        log.info("threads: this machine has %d cores, so %d threads are used, not %d", cores, cores, threads)
        threads = cores
    try:
        import numba

        limit = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        numba.set_num_threads(min(threads, limit))
    except ImportError:
        pass
    torch.set_num_threads(threads)  # after numba, which changes OpenMP's number of threads when it starts
