"""The regularizer: from momentum to a smooth velocity.

``smoother`` is v = K m of several Gaussians; ``weights`` are RDMM's pre-weights h and weights w = G * h; ``regional`` gives each region
Gaussians of its own. ``metric`` is v = K(w) m with the source term; ``penalty`` holds OMT, Range and total variation.
"""

from rdmm.regularizer.penalty import NoPenalty, WeightPenalty
from rdmm.regularizer.regional import regional
from rdmm.regularizer.smoother import MultiGaussian

__all__ = ["MultiGaussian", "NoPenalty", "WeightPenalty", "regional"]
