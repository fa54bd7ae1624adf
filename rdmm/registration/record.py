"""The record of a run: write and read run.json, write initial_conditions.safetensors. The same for images and shapes."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdmm import io
from rdmm.config.renamed import current
from rdmm.data.inputs import Inputs, ShapeInputs
from rdmm.dynamics.base import InitialConditions
from rdmm.io import Outputs
from rdmm.registration.schema import FIELDS, read_fields
from rdmm.registration.verdict import Verdict
from rdmm.runtime.resources import peak_memory
from rdmm.runtime.warnings import other_warnings
from rdmm.stages.base import Result
from rdmm.types import DivergenceError, InputError
from rdmm.version import __version__


@dataclass(frozen=True)
class Provenance:
    """How a registration was run, as run.json records it.

    Args:
        command: the equivalent command line; empty if called from Python.
        seed: random seed.
        device: cpu or cuda.
        threads: number of torch's threads.
        warnings: warnings from reading the inputs and from the run.
    """

    command: str = ""
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    warnings: Sequence[str] = ()


def run_summary(
    inputs: Inputs | ShapeInputs,
    result: Result,
    config: Mapping[str, Any],
    provenance: Provenance,
    status: str,
    metrics: Mapping[str, Any],
    verdict: Verdict,
) -> dict[str, Any]:
    """The content of run.json, without the checksums of the written files."""
    contrasts = inputs.contrasts if isinstance(inputs, Inputs) else ()
    weights = {f"moving_{k}": {"weight": contrast.weight} for k, contrast in enumerate(contrasts, 2)}
    return {
        "status": status,
        "verdict": verdict.grade,
        "reasons": list(verdict.reasons),
        "inputs": {k: {"path": v, "sha256": io.sha256(v)} | weights.get(k, {}) for k, v in inputs.files.items()},
        **({"in_memory": list(inputs.in_memory)} if isinstance(inputs, Inputs) and inputs.in_memory else {}),
        "reading": dict(inputs.reading),
        "versions": {"rdmm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "config": config,
        **{f.name: getattr(provenance, f.name) for f in fields(provenance)},
        "warnings": [*other_warnings(provenance.warnings, verdict.reasons), *verdict.reasons],
        "metrics": metrics,
        "energy": result.energy,
        "seconds": result.seconds,
        "peak_memory_mb": peak_memory() / 2**20,
        "history": result.history,
    }


def nan_to_null(x: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null, in nested dictionaries and lists."""
    if isinstance(x, dict):
        return {str(k): nan_to_null(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [nan_to_null(v) for v in x]
    return None if isinstance(x, float) and not np.isfinite(x) else x


def null_to_nan(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run.json by name, where null stands for a number that is not finite."""
    return {k: float("nan") if v is None else v for k, v in numbers.items()}


def table_row(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run.json in a table of pairs: status, verdict, exit code, message (reasons and warnings), and metrics.

    The status of a finished run whose verdict is ``failed`` is ``failed``. Runs of earlier versions have no verdict.
    """
    reasons, verdict = list(summary.get("reasons", [])), summary.get("verdict", "")
    warnings = other_warnings(summary.get("warnings", []), reasons)
    status = "failed" if (summary["status"], verdict) == ("done", "failed") else summary["status"]
    code = {"failed": DivergenceError.exit_code, "interrupted": 130}.get(status, 0)
    message = "; ".join([*reasons, *warnings])
    return {"status": status, "verdict": verdict, "exit_code": code, "message": message, **table_metrics(summary)}


def warning_text(summary: Mapping[str, Any]) -> str:
    """The warnings of a run.json as one line of text."""
    return "; ".join(map(str, summary.get("warnings", [])))


def table_metrics(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The finite numbers of a run.json, for a table: its metrics, seconds and peak_memory_mb; and ``subject``."""
    numbers = {k: v for k, v in summary["metrics"].items() if k == "subject" or (isinstance(v, int | float) and np.isfinite(v))}
    return {**numbers, "seconds": summary["seconds"]["total"], "peak_memory_mb": summary["peak_memory_mb"]}


def write_conditions(path: Path, ic: InitialConditions) -> None:
    """Write the momentum, and the pre-weights or control points if there are any."""
    from safetensors.torch import save

    tensors = {k: getattr(ic, k) for k in ("momentum", "weights", "points") if getattr(ic, k) is not None}
    io.write_atomically(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def write_run(outputs: Outputs, summary: Mapping[str, Any], written: Sequence[Path]) -> Path:
    """Write run.json, with the checksums of all other files of the run, so it must be written last. Returns its path."""
    path = outputs.path("run.json")
    whole = {**summary, "outputs": {outputs.name(p): io.sha256(p) for p in written}}
    io.write_atomically(path, json.dumps(nan_to_null(whole), indent=1, allow_nan=False).encode())
    return path


def find_outputs(run: str) -> Outputs:
    """The files of a run, given its folder, its prefix or the path of its run.json."""
    text = run.removesuffix("run.json")
    return Outputs(f"{text}/" if os.path.isdir(text or ".") and not text.endswith("/") else text)


def read_summary(path: Path) -> dict[str, Any]:
    """Read a run.json.

    Configurations of earlier versions get the current names.

    Raises:
        InputError: it is missing, or was not written by rdmm: a field is missing or malformed (schema.py).
    """
    run = read_fields(path)
    reading = run["reading"] if "reading" in run else _parse_reading(path, run["command"])
    return {**run, "config": current(run["config"]), "reading": reading}


def _parse_reading(path: Path, command: str) -> dict[str, Any]:
    """The reading options from the recorded command: run.json of version 0.1.0 has no other record of them."""
    found: dict[str, Any] = {}
    try:
        words = shlex.split(command)
        if "--nan" in words:
            found["nan"] = words[words.index("--nan") + 1]
        if "--volume" in words:
            found["volume"] = int(words[words.index("--volume") + 1])
        if "--strict" in words:
            found["strict"] = True
    except (ValueError, IndexError):
        found = {"command": command}
    if not FIELDS["reading"].holds(found):
        raise InputError(f"{path}: not a run.json of rdmm: 'command' must hold a command line, not {command[:100]!r}")
    return found
