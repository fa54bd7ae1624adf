"""Memory and devices of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import psutil
import torch

from rdmm.types import ConfigError


def available_memory() -> int:
    """Bytes that this process may still take."""
    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else min(free, limit - psutil.Process().memory_info().vms)


def reset_peak_memory() -> None:
    """Count peak_memory from here on (Linux; elsewhere it is that of the process)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes of memory that this process had at most since reset_peak_memory."""
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def select_device(name: str) -> torch.device:
    """The device, or ConfigError if it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: cpu or cuda is wanted")
    return device
