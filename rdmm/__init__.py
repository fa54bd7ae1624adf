"""rdmm: registration by diffeomorphisms whose smoothness differs from region to region and moves with the anatomy.

Names are loaded when they are first used, so that ``import rdmm`` and ``rdmm --help`` are immediate.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rdmm.version import __version__

_NAMES = {
    "grid": ["Grid"],
    "measure": ["Measure"],
    "shape": ["Image", "Pair"],
    "smoother": ["MultiGaussian"],
    "shooting": ["Integrator"],
    "dynamics": ["LDDMM", "RDMM", "SVF", "InitialConditions"],
    "points": ["PointLDDMM"],
    "problem": ["Energy", "Problem"],
    "optimise": ["LBFGS"],
    "stages": ["AffineOpt", "Chain", "Deform", "Result", "Skip"],
    "registration": ["Registration", "register"],
    "shapes": ["ShapeRegistration", "register_shapes"],
    "types": ["ConfigError", "DivergenceError", "InputError", "OutputError", "RdmmError", "ResourceError"],
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *_MODULE]  # noqa: PLE0604

if TYPE_CHECKING:
    from rdmm.dynamics import LDDMM, RDMM, SVF, InitialConditions
    from rdmm.grid import Grid
    from rdmm.measure import Measure
    from rdmm.optimise import LBFGS
    from rdmm.points import PointLDDMM
    from rdmm.problem import Energy, Problem
    from rdmm.registration import Registration, register
    from rdmm.shape import Image, Pair
    from rdmm.shapes import ShapeRegistration, register_shapes
    from rdmm.shooting import Integrator
    from rdmm.smoother import MultiGaussian
    from rdmm.stages import AffineOpt, Chain, Deform, Result, Skip
    from rdmm.types import ConfigError, DivergenceError, InputError, OutputError, RdmmError, ResourceError


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        return getattr(importlib.import_module(f"rdmm.{_MODULE[name]}"), name)
    raise AttributeError(f"module 'rdmm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
