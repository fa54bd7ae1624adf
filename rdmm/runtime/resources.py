"""Memory and devices of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from rdmm.types import ConfigError, ResourceError, option

if TYPE_CHECKING:
    import torch

SHARE_OF_MEMORY = 0.9
"""Share of the free memory that one step may need. Not measured."""


def available_memory() -> int:
    """Bytes that this process can still allocate: free memory, or less if a limit (ulimit -v) is set."""
    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else max(0, min(free, limit - psutil.Process().memory_info().vms))


def require_memory(need: int, what: str, advice: str = "downsample it, or crop it to the region of interest") -> None:
    """Check, before memory is allocated, that ``need`` bytes are free.

    Args:
        what: what needs the memory, for the message; usually a file and its size.
        advice: what the user can do.

    Raises:
        ResourceError: less than ``need`` / SHARE_OF_MEMORY bytes are free.
    """
    have = available_memory()
    if need > SHARE_OF_MEMORY * have:
        raise ResourceError(f"{what} needs about {need / 2**30:.1f} GiB, but only {have / 2**30:.1f} GiB are free; {advice}")


def reset_peak_memory() -> None:
    """Start a new measurement of peak_memory. Works on Linux only; elsewhere the peak is that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Largest memory of this process since reset_peak_memory, in bytes."""
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def select_device(name: str) -> torch.device:
    """The torch device of --device, cpu or cuda. Raises ConfigError if it does not exist on this machine."""
    import torch

    wrong = f"{option('device', str(name))}: "
    try:
        device = torch.device(name) if isinstance(name, str) else None
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{wrong}must be cpu or cuda")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"{wrong}PyTorch finds no such CUDA device; use cpu")
    return device
