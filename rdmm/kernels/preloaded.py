"""All kernels, and what numba loads before its first one: for a server of worker processes, which get both without loading them again."""

from __future__ import annotations

import importlib
import pkgutil

import numba

from rdmm import kernels

for _module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
    if _module.name != __name__:
        importlib.import_module(_module.name)

numba.njit(lambda: None)()  # the first function makes numba load its library, which takes .2 s; it starts no threads
