"""``--transform``: the settings that a kind of transform stands for, and those that it leaves without effect."""

from __future__ import annotations

from collections.abc import Sequence

from rdmm.config.explain import brief, override_key
from rdmm.data.given import LINEAR_MODELS, TRANSFORMS
from rdmm.types import ConfigError, nearest

OF_THE_DEFORMATION = (
    "barrier",
    "deform",
    "dynamics",
    "free_weights",
    "initializer",
    "integrator",
    "landmark_weight",
    "optimizer",
    "output",
    "penalty",
    "similarity_weight",
    "smoother",
    "stages",
    "weights",
)
"""First parts of keys that only a deformable stage, or the choice of the stages, uses."""


def transform_overrides(transform: str | None, overrides: Sequence[str], *, for_shapes: bool = False) -> list[str]:
    """The overrides of a kind of transform, to be put after ``overrides``.

    A linear one fits the affine models up to its own, and has no deformable stage. The others choose the dynamics.

    Args:
        transform: one of TRANSFORMS; None: no overrides.
        for_shapes: for shapes, whose only deformation is ``lddmm`` (of control points).

    Raises:
        ConfigError: no such transform, or a setting among ``overrides`` would have no effect with it.
    """
    if transform is None:
        return []
    if transform not in TRANSFORMS:
        hint = nearest(transform, TRANSFORMS) if isinstance(transform, str) else ""
        raise ConfigError(f"transform must be one of {', '.join(TRANSFORMS)}; got {transform!r}{hint}")
    if transform in LINEAR_MODELS:
        return _linear(transform, overrides)
    if for_shapes and transform != "lddmm":
        raise ConfigError(f"transform {transform} is for images; shapes deform by lddmm (of control points), the default")
    return [] if for_shapes else _deformable(transform, overrides)


def _linear(transform: str, overrides: Sequence[str]) -> list[str]:
    for override in overrides:
        key, value = override_key(override), override.partition("=")[2]
        useless = key.split(".")[0] in OF_THE_DEFORMATION and override != "optimizer=none"
        if useless or key == "affine.models" or (key == "affine" and value in ("none", "net")):
            why = f"the transform {transform} is fitted by affine=opt alone, without a deformation"
            raise ConfigError(f"{brief(override)} has no effect: {why}; leave out one of the two")
    models = LINEAR_MODELS[: LINEAR_MODELS.index(transform) + 1]
    return [f"affine.models=[{','.join(models)}]", "stages=affine"]


def _deformable(transform: str, overrides: Sequence[str]) -> list[str]:
    given = {override_key(o): o.partition("=")[2] for o in overrides}
    others = [f"dynamics={given['dynamics']}"] if given.get("dynamics", transform) != transform else []
    others += [f"{k}={v}" for k, v in given.items() if (k, v) in (("stages", "affine"), ("optimizer", "none"))]
    if "initializer" in given or "weights" in given:
        others = [o for o in others if o != "optimizer=none"]  # the initializer predicts the deformation
    if others:
        raise ConfigError(f"{brief(others[0])} contradicts the transform {transform}; leave out one of the two")
    return [f"dynamics={transform}"]
