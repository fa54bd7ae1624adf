"""From initial conditions to maps. One file a dynamics: SVF, LDDMM, RDMM, and LDDMM of points."""

from rdmm.dynamics.base import Dynamics, InitialConditions, Snapshot
from rdmm.dynamics.images import ImageDynamics, PreweightedDynamics
from rdmm.dynamics.integrator import Integrator
from rdmm.dynamics.lddmm import LDDMM
from rdmm.dynamics.points import PointLDDMM
from rdmm.dynamics.rdmm import RDMM
from rdmm.dynamics.svf import SVF

__all__ = [
    "LDDMM",
    "RDMM",
    "SVF",
    "Dynamics",
    "ImageDynamics",
    "InitialConditions",
    "Integrator",
    "PointLDDMM",
    "PreweightedDynamics",
    "Snapshot",
]
