"""The objective of a registration, and how it is minimized."""

from rdmm.optim.initializers import Controls, Regions, Transported, Zero
from rdmm.optim.multiscale import LBFGS, NoOptimizer
from rdmm.optim.problem import Energy, Problem

__all__ = ["LBFGS", "Controls", "Energy", "NoOptimizer", "Problem", "Regions", "Transported", "Zero"]
