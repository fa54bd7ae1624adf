"""Earlier names of classes, and keys that earlier settings lack, in stored files: models, run.json, and training states.

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


ADDED: dict[str, dict[str, str | None]] = {
    "rdmm.dynamics.RDMM": {"weight_unit": "smoother.unit"},
    "rdmm.optim.Regions": {"smoothing_unit": None},
}
"""Keys that earlier files lack, by today's ``_target_``, each with the key whose value was in effect; None: ``domain`` was."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "rdmm.optim.LBFGS": {"match_contrast": True, "finest": 0.7},
    "rdmm.registration.Output": {"refined": False},
    "rdmm.regularizer.MultiGaussian": {"compressibility": 1.0},
}
"""Keys that earlier files lack, by today's ``_target_``, with the value under which their finished runs count as done."""


def current(settings: Any) -> Any:
    """``settings`` (plain data, nested or with dotted keys) with today's names of classes, and with the keys of ADDED and DEFAULTS."""
    if isinstance(settings, list):
        return [current(v) for v in settings]
    if not isinstance(settings, dict):
        return settings
    named = {k: RENAMED.get(v, v) if _is_target(k, v) else current(v) for k, v in settings.items()}
    for key, value in list(named.items()):
        if _is_target(key, value):
            prefix = key.removesuffix("_target_")
            for name, default in DEFAULTS.get(str(value), {}).items():
                named.setdefault(prefix + name, default)
            for name, source in ADDED.get(str(value), {}).items():
                named.setdefault(prefix + name, "domain" if source is None else _lookup(named, prefix + source, "domain"))
    return named


def _is_target(key: Any, value: Any) -> bool:
    return isinstance(key, str) and key.endswith("_target_") and isinstance(value, str)


def _lookup(settings: dict[str, Any], key: str, default: Any) -> Any:
    """The value of a dotted key, in nested settings or in those with dotted keys."""
    if key in settings:
        return settings[key]
    first, _, rest = key.partition(".")
    inner = settings.get(first)
    return _lookup(inner, rest, default) if rest and isinstance(inner, dict) else default
