"""A result shot again on a finer grid: whether it is that of its geodesic, or of its shooting grid."""

from __future__ import annotations

import torch

from rdmm.dynamics.images import ImageDynamics
from rdmm.optim.problem import Similarity
from rdmm.similarity.parts import compare
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import composed
from rdmm.stages.base import Refined, Result

FACTOR = 2
"""How much finer the shooting grid is, and how much shorter the steps."""


def shoot_again(result: Result, similarity: Similarity | None, pair: Pair) -> Refined | None:
    """The last deformable stage of a result on a finer grid; None where there is no shooting grid or no similarity.

    It costs as much as FACTOR^(d + 1) evaluations of the objective without gradients, for images of d dimensions.

    Raises:
        DivergenceError: the flow diverges on the finer grid.
    """
    dynamics, ic = result.dynamics, result.ic
    if not isinstance(dynamics, ImageDynamics) or ic is None or similarity is None:
        return None
    finer, conditions = dynamics.refined(ic, FACTOR)
    pair = pair.with_initial(result.before)
    with torch.no_grad():
        found = finer.shoot(conditions, pair.fixed)
        value = float(compare(similarity, pair.moved_by(found), pair.fixed).sum())
    return Refined(composed(found, result.before), value)
