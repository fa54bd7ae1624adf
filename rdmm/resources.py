"""Memory, threads and devices of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from rdmm.io.nifti import Source, peek_shape
from rdmm.shape import Image
from rdmm.types import ConfigError, ResourceError

# Peaks of the default preset over what importing takes, measured on brains at 1 mm and 2 mm (benchmarks/README.md):
# volumes of the images' size, and fields on the shooting grid, which the smoother keeps to about a million voxels.
BYTES_PER_VOXEL = 250
BYTES_PER_SHOT_VOXEL = 1000


def available_memory() -> int:
    """Bytes that this process may still take."""
    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else min(free, limit - psutil.Process().memory_info().vms)


def check_memory(sources: Sequence[Source | Image]) -> int:
    """Estimated peak in bytes; raises ResourceError before anything is read if it does not fit."""
    shapes = [s.grid.shape if isinstance(s, Image) else peek_shape(s)[:3] for s in sources]
    voxels = [int(np.prod(s, dtype=object)) for s in shapes]
    need = BYTES_PER_VOXEL * sum(voxels) // 2 + BYTES_PER_SHOT_VOXEL * min(voxels[0], 10**6)
    have = available_memory()
    if need > 0.9 * have:
        shape = "x".join(map(str, shapes[int(np.argmax(voxels))]))
        raise ResourceError(
            f"an image of {shape} voxels needs about {need / 2**30:.1f} GiB and {have / 2**30:.1f} GiB are free; "
            "shrink the images, or crop them to the region of interest"
        )
    return need


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


def set_threads(threads: int | None) -> None:
    """Threads of torch and of the fused kernels."""
    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}")
    try:
        import numba

        most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        numba.set_num_threads(min(threads, most))
    except ImportError:
        pass
    torch.set_num_threads(threads)  # after numba, which sets OpenMP's threads when it starts its own


def chosen_device(name: str) -> torch.device:
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
