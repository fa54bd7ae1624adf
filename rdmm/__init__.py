"""rdmm: registration by diffeomorphisms whose smoothness differs from region to region and moves with the anatomy.

Names are loaded when they are first used, so that ``import rdmm`` and ``rdmm --help`` are immediate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdmm.lazy import lazy_names
from rdmm.runtime.threads import wait_asleep
from rdmm.version import __version__

wait_asleep()  # before torch is loaded

_names, __getattr__ = lazy_names(
    "rdmm",
    {
        "spatial.grid": ["Grid"],
        "spatial.measure": ["Measure"],
        "io.exchange": ["Image"],
        "spatial.pair": ["Pair"],
        "regularizer.smoother": ["MultiGaussian"],
        "dynamics": ["LDDMM", "RDMM", "SVF", "InitialConditions", "Integrator", "PointLDDMM"],
        "optim": ["LBFGS", "Energy", "Problem"],
        "stages": ["AffineOpt", "Chain", "Deform", "Result", "Skip"],
        "mapping": ["apply", "compose", "convert", "evaluate", "invert", "jacobian", "points"],
        "registration": ["Registration", "ShapeRegistration", "register", "register_shapes"],
        "types": ["ConfigError", "DivergenceError", "InputError", "OutputError", "RdmmError", "ResourceError"],
    },
)
__all__ = ["__version__", *_names]  # noqa: PLE0604

if TYPE_CHECKING:
    from rdmm.dynamics import LDDMM, RDMM, SVF, InitialConditions, Integrator, PointLDDMM
    from rdmm.io.exchange import Image
    from rdmm.mapping import apply, compose, convert, evaluate, invert, jacobian, points
    from rdmm.optim import LBFGS, Energy, Problem
    from rdmm.registration import Registration, ShapeRegistration, register, register_shapes
    from rdmm.regularizer.smoother import MultiGaussian
    from rdmm.spatial.grid import Grid
    from rdmm.spatial.measure import Measure
    from rdmm.spatial.pair import Pair
    from rdmm.stages import AffineOpt, Chain, Deform, Result, Skip
    from rdmm.types import ConfigError, DivergenceError, InputError, OutputError, RdmmError, ResourceError


def __dir__() -> list[str]:
    return sorted(__all__)
