"""From initial conditions to maps: one file for each dynamics (SVF, LDDMM, RDMM, and LDDMM of points).

``base`` says what a dynamics is and ``images`` what those of images share; ``epdiff`` holds the equations, RDMM (3.10) among them.
``integrator`` and ``semi_lagrangian`` step through time; ``coordinates`` are the vectors that an optimizer searches in.
"""

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
