"""How threads wait: asleep, so that the processor is free for other work.

The threads of OpenMP (torch's, and those of the compiled kernels) spin by default: a thread without work holds its core for a while. On a
busy machine the thread that everybody waits for then gets no core.
"""

from __future__ import annotations

import os
from pathlib import Path

OWN_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables of the environment by which a user chooses how OpenMP's threads wait."""


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user chose otherwise by a variable of OWN_CHOICES.

    OpenMP reads its variables when it is loaded. A process that has loaded it before, as by ``import torch``, gets ``_crowd``.
    """
    if any(name in os.environ for name in OWN_CHOICES):
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    for library in _loaded_openmp():
        _crowd(library)


def _loaded_openmp() -> set[str]:
    """Paths of the GNU OpenMP libraries of this process; none on systems without /proc."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    except OSError:
        return set()
    return {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/libgomp" in line}


def _crowd(library: str) -> None:
    """Keep as many threads as there are cores asleep in a team of their own.

    GNU OpenMP spins 300 times shorter while its threads outnumber the cores, asleep or not. With these, every other team is one too many.
    """
    import ctypes
    import threading

    openmp, ready = ctypes.CDLL(library), threading.Event()

    def hold() -> None:
        try:
            do_nothing = ctypes.cast(openmp.omp_get_thread_num, ctypes.c_void_p)
            openmp.GOMP_parallel(do_nothing, None, openmp.omp_get_num_procs(), 0)
        finally:
            ready.set()
        threading.Event().wait()

    threading.Thread(target=hold, name="rdmm-crowd", daemon=True).start()
    ready.wait()
