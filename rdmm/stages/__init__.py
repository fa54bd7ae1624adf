"""Stages: a pair to a map. Affine or deformable, optimized or predicted, all have one form and compose in a chain.

``base`` is a stage, its result and the chain; ``deform`` finds or predicts a geodesic.
``affine`` registers images and shapes affinely, by the search of ``affine_search`` over the parameters of ``affine_model``.
``gradient_flow`` moves the points of measures freely.
"""

from rdmm.stages.affine import AffineOpt, PointAffine
from rdmm.stages.base import Chain, Result, Skip, Stage
from rdmm.stages.deform import Deform, learned
from rdmm.stages.gradient_flow import GradientFlow

__all__ = ["AffineOpt", "Chain", "Deform", "GradientFlow", "PointAffine", "Result", "Skip", "Stage", "learned"]
