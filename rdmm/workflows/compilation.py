"""Kernels compiled before the first registration."""

from __future__ import annotations

import logging

import torch

from rdmm.kernels.available import has_numba
from rdmm.registration.entry import register

SIZE = 16
"""Voxels along the edges of the images that are registered so that their kernels are compiled."""


def compile_ahead() -> None:
    """Compile the kernels of the default settings where none is cached, by registering two small images.

    Otherwise the times of the first run would say nothing about the next, and each process of a batch would compile them for itself.
    """
    if not has_numba():
        return
    from rdmm.kernels import compiled, sampling  # noqa: F401  sampling has kernels that every registration needs

    if compiled.any_cached():
        return
    compiled.announce()
    x, y = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    fixed = torch.exp(-4 * (x**2 + 2 * y**2)) + torch.exp(-20 * ((x - 0.4) ** 2 + (y - 0.2) ** 2))
    log = logging.getLogger("rdmm")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        register(fixed, fixed.roll(1, 0), verbose=False)
    finally:
        log.setLevel(level)
