"""What the measures of a result would be on a finer shooting grid."""

from __future__ import annotations

from typing import Any

from rdmm import metrics
from rdmm.data.inputs import Inputs
from rdmm.spatial.transform import Placed, framed
from rdmm.stages.base import Result


def refined_metrics(result: Result, inputs: Inputs, subject: metrics.Subject) -> dict[str, Any]:
    """Change of the similarity in percent, mean and largest distance of the two maps in the subject in mm, and Dice of the labels by the
    refined map; {} where nothing was shot again."""
    refined, similarities = result.refined, result.similarities
    if refined is None or similarities is None:
        return {}
    grid = inputs.pair.fixed.grid
    x = grid.identity(inputs.pair.fixed.data)
    distance = (refined.total_map(x) - inputs.pair.total_map(result.transform)(x)).norm(dim=1, keepdim=True) * grid.length
    inside = distance[subject.inside > 0]
    out = {
        "refined_similarity_percent": 100 * (refined.similarity / similarities[1] - 1) if similarities[1] else 0.0,
        "refined_map_mm": float(inside.mean()),
        "refined_map_max_mm": float(inside.max()),
    }
    fixed, moving = inputs.fixed_labels, inputs.moving_labels
    if fixed is not None and moving is not None:
        moved = moving.moved_by(framed(Placed(refined.total_map, grid), fixed.grid), fixed.grid, mode="nearest")
        out["refined_dice"], _ = metrics.mean_dice(metrics.dice(moved.data, fixed.data, inputs.labels))
    return out
