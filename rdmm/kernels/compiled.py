"""How kernels are compiled: which arithmetic the compiler may rearrange, where it keeps the machine code, and what is said of it."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba import config
from numba.core import event
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys

log = logging.getLogger(__name__)

FAST = {"nnan", "ninf", "nsz", "arcp", "afn"}
"""LLVM's fast arithmetic without ``reassoc`` and ``contract``. With these, the order of sums and the products that become fused
multiply-adds differ between code that was just compiled and code that was loaded from the cache: so do the last bits."""

CACHE_VARIABLE = "NUMBA_CACHE_DIR"


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function for numba's compiler; ``options`` are those of numba.njit.

    The machine code is kept in the package's folder, or else in the user's cache folder. Where neither can be written, as in a container
    that runs as another user, it is kept in a folder of this run alone.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        _refuse_shared_cache()
        try:
            cache = _Cache(function)
        except RuntimeError:  # numba found no folder that it can write
            _use_own_cache("neither the installation nor the user's cache folder can be written")
            cache = _Cache(function)
        cache._cache_file._source_stamp = _sources()
        kernel = numba.njit(**options)(function)
        kernel._cache = cache
        _kernels.append(kernel)
        return kernel

    return decorate


class _Cache(FunctionCache):
    """Numba's cache of machine code. It loads code without the tables by which numba compiles: they take a quarter of a second.

    What is compiled anew gets them from numba's compiler.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)
        return self._load_overload(sig, target_context)


_kernels: list[Any] = []
"""The kernels of the modules that were imported."""


def any_cached() -> bool:
    """Whether the machine code of some imported kernel is kept, and of today's source."""
    return any(kernel._cache._cache_file._load_index() for kernel in _kernels)


@lru_cache
def _sources() -> str:
    """A digest of the sources of all kernels. Kept code is used only for the same ones: by itself, numba looks at the kernel's own file
    alone, and not at this one, nor at those whose functions become part of it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_announced = False


def announce() -> None:
    """Say once in this process that kernels are being compiled."""
    global _announced
    if not _announced:
        log.info("kernels are compiled for this machine, once: about half a minute")
    _announced = True


class _Announcer(event.Listener):
    """Announces the first kernel that numba compiles instead of loading it. Functions of other packages do not count."""

    def on_start(self, compilation: Any) -> None:
        if compilation.data["dispatcher"] in _kernels:
            announce()

    def on_end(self, compilation: Any) -> None:
        """Nothing is said."""


event.register("numba:compile", _Announcer())


def _refuse_shared_cache() -> None:
    """Use no NUMBA_CACHE_DIR that somebody else can write: numba unpickles what it finds there, which can run any code."""
    folder = config.CACHE_DIR  # type: ignore[attr-defined]
    if not folder:
        return
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        state = os.stat(folder)
    except OSError as error:
        _use_own_cache(f"{CACHE_VARIABLE}={folder} cannot be used ({error.strerror})")
        return
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        _use_own_cache(f"{CACHE_VARIABLE}={folder} belongs to another user, or others can write there")


def _use_own_cache(reason: str) -> None:
    """Keep machine code in a new folder, which only this user can read; processes that this one starts use it too."""
    global _announced
    folder = tempfile.mkdtemp(prefix="rdmm-kernels-")
    log.warning(
        "%s: kernels are compiled anew in this run, which takes about a minute; set %s to a folder of your own", reason, CACHE_VARIABLE
    )
    _announced = True  # by the warning
    config.CACHE_DIR = os.environ[CACHE_VARIABLE] = folder  # type: ignore[attr-defined]
    atexit.register(_remove, folder, os.getpid())


def _remove(folder: str, owner: int) -> None:
    """Remove the folder at the end of the process that made it, not of one that was forked from it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
