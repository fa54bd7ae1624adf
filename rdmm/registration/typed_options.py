"""The options that stand for settings: ``--init``, ``--transform``, ``--guide-labels``; and the settings that contradict them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rdmm.config.explain import brief, override_key
from rdmm.data.given import LINEAR_MODELS, TRANSFORMS
from rdmm.data.parts import LABEL_WEIGHT
from rdmm.types import ConfigError, nearest, option

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


def option_overrides(
    overrides: Sequence[str], *, init: str | None = None, transform: str | None = None, guide_labels: bool = False, for_shapes: bool = False
) -> list[str]:
    """The overrides that options stand for, to be put after ``overrides``, which were typed.

    Raises:
        ConfigError: an option is unknown, or a setting contradicts it.
    """
    starts = [] if init is None else [f"affine.init={init}"]
    return [*starts, *transform_overrides(transform, overrides, for_shapes=for_shapes), *_guide(overrides, guide_labels, for_shapes)]


def _guide(overrides: Sequence[str], guide_labels: bool, for_shapes: bool) -> list[str]:
    if not guide_labels:
        return []
    if for_shapes:
        raise ConfigError(f"{option('guide_labels')} works only for images; leave it out")
    weight = {override_key(o): o.partition("=")[2] for o in overrides}.get("guide_weight")
    if weight is None:
        return [f"guide_weight={LABEL_WEIGHT}"]
    if re.fullmatch(r"[0.]*", weight):
        raise ConfigError(f"guide_weight={weight} contradicts {option('guide_labels')}; leave out one of the two")
    return []


USEFUL_WITHOUT_DEFORMATION = ("optimizer=none", "similarity=nmi", "similarity=mind")
"""Settings that say the same, or that drive the affine stage, too."""

LINEAR_VOXELS = "[24,48,80,160]"
"""Levels of a linear transform that is the result: nothing refines it. Between a T1 and a proton density slice of one head, SimpleITK finds
a rigid motion of 1.3 and 1.1 voxels (both ways) at full resolution; the levels up to 80 give 1.5 and 1.1, those up to 160 1.2 and 1.3."""


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
    if not isinstance(transform, str) or transform not in TRANSFORMS:
        hint = nearest(transform, TRANSFORMS) if isinstance(transform, str) else ""
        raise ConfigError(f"transform must be one of {', '.join(TRANSFORMS)}; got {transform!r}{hint}")
    if transform in LINEAR_MODELS:
        return _linear(transform, overrides, for_shapes=for_shapes)
    if for_shapes and transform != "lddmm":
        raise ConfigError(f"{option('transform', transform)} is for images; shapes deform by lddmm (of control points), the default")
    return [] if for_shapes else _deformable(transform, overrides)


def _linear(transform: str, overrides: Sequence[str], *, for_shapes: bool) -> list[str]:
    for override in overrides:
        key, value = override_key(override), override.partition("=")[2]
        useless = key.split(".")[0] in OF_THE_DEFORMATION and override not in USEFUL_WITHOUT_DEFORMATION
        if useless or key == "affine.models" or (key == "affine" and value in ("none", "net")):
            why = f"{option('transform', transform)} is fitted by affine=opt alone, without a deformation"
            raise ConfigError(f"{brief(override)} has no effect: {why}; leave out one of the two")
    models = LINEAR_MODELS[: LINEAR_MODELS.index(transform) + 1]
    levels = [] if for_shapes or any(override_key(o) == "affine.voxels" for o in overrides) else [f"affine.voxels={LINEAR_VOXELS}"]
    return [f"affine.models=[{','.join(models)}]", *levels, "stages=affine"]


def _deformable(transform: str, overrides: Sequence[str]) -> list[str]:
    given = {override_key(o): o.partition("=")[2] for o in overrides}
    others = [f"dynamics={given['dynamics']}"] if given.get("dynamics", transform) != transform else []
    others += [f"{k}={v}" for k, v in given.items() if (k, v) in (("stages", "affine"), ("optimizer", "none"))]
    if "initializer" in given or "weights" in given:
        others = [o for o in others if o != "optimizer=none"]  # the initializer predicts the deformation
    if others:
        raise ConfigError(f"{brief(others[0])} contradicts {option('transform', transform)}; leave out one of the two")
    return [f"dynamics={transform}"]
