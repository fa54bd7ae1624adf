"""A registration of images rebuilt from the files that it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdmm import io
from rdmm.data.given import REPORT_INPUTS
from rdmm.data.inputs import Inputs, read_inputs
from rdmm.dynamics.base import InitialConditions
from rdmm.io import Outputs
from rdmm.io.files import require_file
from rdmm.registration.entry import build_settings
from rdmm.registration.images import Registration
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Affine, Identity, Transform, composed, framed
from rdmm.stages.base import Result
from rdmm.stages.deform import deforms
from rdmm.types import InputError


def read_run(outputs: Outputs, summary: Mapping[str, Any]) -> Registration:
    """A registration of images from what it wrote.

    Its geodesic is shot again where it was the only deformation and went on from no initial transform; else there is none
    (``result.ic`` is None).

    Raises:
        InputError: a file is missing, or no longer what it was at the time of the run.
    """
    files = {k: v["path"] for k, v in summary["inputs"].items()}
    if any(io.is_mesh(name) for name in files.values()):
        raise InputError(f"{outputs.path('run.json')}: a run of shapes, whose report is made with it: register again with --overwrite")
    if not {"fixed", "moving"} <= set(files):
        raise InputError(f"{outputs.path('run.json')}: its images were no files; Registration.save makes the report of such a run")
    sums = {v["path"]: v["sha256"] for v in summary["inputs"].values()}
    sums |= {str(outputs.path(k)): v for k, v in summary["outputs"].items() if k != "report.html"}
    for name, wanted in sums.items():
        if io.sha256(require_file(name)) != wanted:
            raise InputError(f"{name}: not the file of this run any more (its sha256 differs); register again")
    further = {k: files[k] for k in REPORT_INPUTS if k in files}
    inputs = read_inputs(files["fixed"], files["moving"], **further, **summary["reading"], require_overlap=False)
    settings = build_settings(summary["config"])
    found = deforms(settings.stages)
    result = _restore_result(outputs, inputs, summary, found[0].problem.dynamics if len(found) == 1 and "initial" not in files else None)
    return Registration(inputs, result, settings.config, output=settings.output, status=summary["status"])


def _restore_result(outputs: Outputs, inputs: Inputs, summary: Mapping[str, Any], dynamics: Any) -> Result:
    """What the run found; its initial conditions only where ``dynamics`` is what they are shot by."""
    grid = inputs.pair.fixed.grid
    before = _read_transform(outputs, "0GenericAffine.mat", grid)
    u, w = (_read_transform(outputs, name, grid) for name in ("1Warp.nii.gz", "1InverseWarp.nii.gz"))
    inverse = composed(before.inverse(), w) if isinstance(before, Affine) else w
    conditions = outputs.path("initial_conditions.safetensors")
    ic = _read_conditions(conditions) if dynamics is not None and conditions.exists() else None
    history, seconds = list(summary["history"]), dict(summary["seconds"])
    return Result(composed(u, before), inverse, dict(summary["energy"]), ic, history, seconds, before, None if ic is None else dynamics)


def _read_transform(outputs: Outputs, name: str, grid: Grid) -> Transform:
    path = outputs.path(name)
    return framed(io.read_transform(str(path)), grid) if path.exists() else Identity()


def _read_conditions(path: Path) -> InitialConditions:
    from safetensors.torch import load

    try:
        return InitialConditions(**load(path.read_bytes()))
    except Exception as error:
        raise InputError(f"{path}: not the initial conditions of a run ({error})") from error
