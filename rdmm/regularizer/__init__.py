"""What makes maps smooth: the smoother v = K m, pre-weights and weights of RDMM, its metric, and penalties on pre-weights."""

from rdmm.regularizer.penalty import NoPenalty, WeightPenalty
from rdmm.regularizer.smoother import MultiGaussian

__all__ = ["MultiGaussian", "NoPenalty", "WeightPenalty"]
