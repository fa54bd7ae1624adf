"""The objective of a registration, and how it is minimized.

``problem`` is the objective; ``lbfgs`` the line search and the two-loop recursion; ``multiscale`` the search from coarse to fine.
``initializers`` say where a search starts.
"""

from rdmm.optim.initializers import Controls, Regions, Transported, Zero
from rdmm.optim.multiscale import LBFGS, NoOptimizer
from rdmm.optim.problem import Energy, Problem

__all__ = ["LBFGS", "Controls", "Energy", "NoOptimizer", "Problem", "Regions", "Transported", "Zero"]
