"""Rebuild a finished registration of images from the files that it wrote."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdmm import io
from rdmm.config.trust import require_trusted
from rdmm.data.given import MAX_IMAGES, REPORT_INPUTS, Also
from rdmm.data.inputs import Inputs, read_inputs
from rdmm.dynamics.base import InitialConditions
from rdmm.io import Outputs
from rdmm.io.files import require_file
from rdmm.registration.entry import Settings, build_settings
from rdmm.registration.images import Registration
from rdmm.registration.record import null_to_nan
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Affine, Identity, Transform, composed, framed
from rdmm.stages.base import Result
from rdmm.stages.deform import deforms
from rdmm.types import ConfigError, InputError, option

log = logging.getLogger(__name__)


def read_run(outputs: Outputs, summary: Mapping[str, Any]) -> Registration:
    """Rebuild a registration of images from its files; ``summary`` is its run.json.

    The geodesic is computed again if the run had one deformation and no initial transform. Otherwise ``result.ic`` is None.

    Raises:
        ConfigError: its settings name a class that conf/ does not name (require_trusted).
        InputError: a file is missing or has changed since the run, or the run cannot be rebuilt (shapes, images that were no files).
    """
    files = {k: v["path"] for k, v in summary["inputs"].items()}
    record = outputs.path("run.json")
    config = require_trusted(summary["config"], str(record))
    if any(io.is_mesh(name) for name in files.values()):
        raise InputError(
            f"{record}: this is a run of shapes, and its report cannot be made again from files; register again with {option('overwrite')}"
        )
    if not {"fixed", "moving"} <= set(files):
        raise InputError(f"{record}: the images of this run were not files; use Registration.save in Python to write its report")
    sums = {v["path"]: v["sha256"] for v in summary["inputs"].values()}
    sums |= {str(outputs.path(k)): v for k, v in summary["outputs"].items() if k != "report.html"}
    for name, wanted in sums.items():
        if io.sha256(name if os.path.isdir(name) else require_file(name)) != wanted:
            raise InputError(f"{name}: the file has changed since this run (its sha256 differs); register again")
    optional = {k: files[k] for k in REPORT_INPUTS if k in files}
    settings = _build_settings(config, record)
    also = _also(summary["inputs"])
    inputs = read_inputs(files["fixed"], files["moving"], **optional, **summary["reading"], also=also, require_overlap=False)
    inputs = inputs.recognized(settings.labels)
    deformations = deforms(settings.stages)
    lost = summary.get("in_memory", [])
    if lost:
        log.warning("%s: %s of this run were no files: the report is made without them", record, ", ".join(lost))
    can_shoot = len(deformations) == 1 and "initial" not in {*files, *lost}
    dynamics = deformations[0].problem.dynamics if can_shoot else None
    result = _restore_result(outputs, inputs, summary, dynamics)
    return Registration(inputs, result, settings.config, output=settings.output, status=summary["status"])


def _restore_result(outputs: Outputs, inputs: Inputs, summary: Mapping[str, Any], dynamics: Any) -> Result:
    """The result of the run; its initial conditions only if their ``dynamics`` is given."""
    grid = inputs.pair.fixed.grid
    before = _read_transform(outputs, "0GenericAffine.mat", grid)
    deformation, inverse = _read_transform(outputs, "1Warp.nii.gz", grid), _read_transform(outputs, "1InverseWarp.nii.gz", grid)
    if isinstance(before, Affine):
        inverse = composed(before.inverse(), inverse)
    conditions = outputs.path("initial_conditions.safetensors")
    ic = _read_conditions(conditions) if dynamics is not None and os.path.exists(conditions) else None
    history = [null_to_nan(row) for row in summary["history"]]
    energy, seconds = null_to_nan(summary["energy"]), dict(summary["seconds"])
    return Result(composed(deformation, before), inverse, energy, ic, history, seconds, before, None if ic is None else dynamics)


def _also(recorded: Mapping[str, Any]) -> list[Also]:
    """The further images of the subjects."""
    found = []
    for fixed, moving in ((recorded.get(f"fixed_{k}"), recorded.get(f"moving_{k}")) for k in range(2, MAX_IMAGES + 1)):
        if fixed and moving:
            found.append(Also(fixed["path"], moving["path"], moving.get("weight", 1.0)))
    return found


def _build_settings(config: Mapping[str, Any], record: Path) -> Settings:
    try:
        return build_settings(config)
    except ConfigError as error:
        raise InputError(f"{record}: 'config' cannot be used: {error}") from error


def _read_transform(outputs: Outputs, name: str, grid: Grid) -> Transform:
    """A transform of the run in domain units of the fixed grid; the identity if the run has no such file."""
    path = outputs.path(name)
    return framed(io.read_transform(str(path)), grid) if os.path.exists(path) else Identity()


def _read_conditions(path: Path) -> InitialConditions:
    from safetensors.torch import load

    try:
        found = load(path.read_bytes())
        return InitialConditions(found.pop("momentum"), found.pop("weights", None), found.pop("points", None), **found)  # type: ignore[arg-type]
    except Exception as error:
        raise InputError(f"{path}: these are not the initial conditions of a run ({error})") from error
