"""Stages: a pair to a map. Affine or deformable, optimized or predicted, all have one form and compose in a chain."""

from rdmm.stages.affine import AffineOpt, PointAffine
from rdmm.stages.base import Chain, Result, Skip, Stage
from rdmm.stages.deform import Deform, learned

__all__ = ["AffineOpt", "Chain", "Deform", "PointAffine", "Result", "Skip", "Stage", "learned"]
