"""Earlier names of classes, which stored files still hold: model files, run.json, and training states.

``current`` is applied wherever a configuration is read from a file or compared with one.
"""

from __future__ import annotations

from typing import Any

RENAMED = {
    "eval.main.Study": "eval.study.Study",
    "rdmm.similarity.measures.EnergyDistance": "rdmm.similarity.EnergyDistance",
    "rdmm.similarity.measures.HausdorffDivergence": "rdmm.similarity.HausdorffDivergence",
    "rdmm.similarity.measures.KernelDistance": "rdmm.similarity.KernelDistance",
    "rdmm.similarity.measures.SinkhornDivergence": "rdmm.similarity.SinkhornDivergence",
    "rdmm.similarity.measures.SoftMinDivergence": "rdmm.similarity.SoftMinDivergence",
    "rdmm.similarity.sinkhorn.GridSinkhorn": "rdmm.similarity.GridSinkhorn",
    "rdmm.data.augment.Augment": "rdmm.data.Augment",
    "rdmm.data.brains.Brains": "rdmm.data.Brains",
    "rdmm.data.brains.Slices": "rdmm.data.BrainSlices",
    "rdmm.data.contrast.Contrasts": "rdmm.data.Contrasts",
    "rdmm.data.items.Folder": "rdmm.data.FolderSource",
    "rdmm.data.knees.Knees": "rdmm.data.Knees",
    "rdmm.data.listed.Listed": "rdmm.data.PairTable",
    "rdmm.data.lists.PairTable": "rdmm.data.PairSource",
    "rdmm.data.lists.Table": "rdmm.data.TableSource",
    "rdmm.data.livers.Livers": "rdmm.data.Livers",
    "rdmm.data.lungs.LungMasks": "rdmm.data.LungMasks",
    "rdmm.data.lungs.RightLung": "rdmm.data.RightLung",
    "rdmm.data.shapes.Amoebas": "rdmm.data.Amoebas",
    "rdmm.data.shapes.KneeVoxels": "rdmm.data.KneeVoxels",
    "rdmm.data.shapes.Meshes": "rdmm.data.Meshes",
    "rdmm.data.synthetic.Shapes": "rdmm.data.SyntheticShapes",
    "rdmm.data.training.ContrastPairs": "rdmm.data.ContrastPairs",
    "rdmm.data.training.ImagePairs": "rdmm.data.ImagePairs",
    "rdmm.data.training.ShapePairs": "rdmm.data.SyntheticPairs",
    "rdmm.initial.Controls": "rdmm.optim.Controls",
    "rdmm.initial.Regions": "rdmm.optim.Regions",
    "rdmm.initial.Transported": "rdmm.optim.Transported",
    "rdmm.initial.Zero": "rdmm.optim.Zero",
    "rdmm.intensity.Normalise": "rdmm.data.Normalize",
    "rdmm.optimise.LBFGS": "rdmm.optim.LBFGS",
    "rdmm.optimise.NoOptimiser": "rdmm.optim.NoOptimizer",
    "rdmm.penalty.NoPenalty": "rdmm.regularizer.NoPenalty",
    "rdmm.penalty.WeightPenalty": "rdmm.regularizer.WeightPenalty",
    "rdmm.points.PointLDDMM": "rdmm.dynamics.PointLDDMM",
    "rdmm.problem.Problem": "rdmm.optim.Problem",
    "rdmm.shooting.Integrator": "rdmm.dynamics.Integrator",
    "rdmm.smoother.MultiGaussian": "rdmm.regularizer.MultiGaussian",
    "rdmm.trajectory.Output": "rdmm.registration.Output",
    "train.main.Table": "train.table.Table",
}
"""Today's ``_target_`` for each earlier one."""


def current(settings: Any) -> Any:
    """``settings`` (plain data) with every earlier ``_target_`` replaced by today's."""
    if isinstance(settings, dict):
        return {k: RENAMED.get(v, v) if k == "_target_" and isinstance(v, str) else current(v) for k, v in settings.items()}
    return [current(v) for v in settings] if isinstance(settings, list) else settings
