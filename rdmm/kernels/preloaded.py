"""All kernels, and what numba loads before its first one: for a server of worker processes, which get both without loading them again."""

from __future__ import annotations

import importlib
import pkgutil

import numba.np.arrayobj
import numba.np.ufunc.parallel  # noqa: F401  both are named in kept machine code
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

from rdmm import kernels

for _module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
    if _module.name != __name__:
        importlib.import_module(_module.name)

rtsys.initialize(cpu_target.target_context)  # what the first kernel would do; it starts no threads
