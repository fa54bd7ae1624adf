"""What is written of a run: run.json and initial_conditions.safetensors, of images and shapes alike."""

from __future__ import annotations

import json
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
from rdmm.io.files import require_file
from rdmm.runtime.resources import peak_memory
from rdmm.stages.base import Result
from rdmm.types import InputError
from rdmm.version import __version__


@dataclass(frozen=True)
class Provenance:
    """How a registration was run, as run.json records it.

    Args:
        command: what would be typed for it; empty where it was called from Python.
        threads: of torch.
        warnings: of reading the inputs and of the run.
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
) -> dict[str, Any]:
    """What run.json holds, without the checksums of the files written."""
    return {
        "status": status,
        "inputs": {k: {"path": v, "sha256": io.sha256(v)} for k, v in inputs.files.items()},
        "reading": dict(inputs.reading),
        "versions": {"rdmm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "config": config,
        **{f.name: getattr(provenance, f.name) for f in fields(provenance)},
        "metrics": metrics,
        "energy": result.energy,
        "seconds": result.seconds,
        "peak_memory_mb": peak_memory() / 2**20,
        "history": result.history,
    }


def nan_to_null(x: Any) -> Any:
    """Without NaN and infinity, which JSON does not have: null."""
    if isinstance(x, dict):
        return {str(k): nan_to_null(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [nan_to_null(v) for v in x]
    return None if isinstance(x, float) and not np.isfinite(x) else x


def warning_text(summary: Mapping[str, Any]) -> str:
    """The warnings of a run.json in one line."""
    return "; ".join(map(str, summary.get("warnings", [])))


def table_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run.json that a table shows; what is none (NaN) is left out."""
    numbers = {k: v for k, v in summary["metrics"].items() if isinstance(v, int | float) and np.isfinite(v)}
    return {**numbers, "seconds": summary["seconds"]["total"], "peak_memory_mb": summary["peak_memory_mb"]}


def write_conditions(path: Path, ic: InitialConditions) -> None:
    """Momentum, and pre-weights or control points where there are any."""
    from safetensors.torch import save

    tensors = {k: getattr(ic, k) for k in ("momentum", "weights", "points") if getattr(ic, k) is not None}
    io.write_atomically(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def write_run(outputs: Outputs, summary: Mapping[str, Any], written: Sequence[Path]) -> Path:
    """run.json, the last file of a run: it vouches for the others by their checksums."""
    path = outputs.path("run.json")
    whole = {**summary, "outputs": {outputs.name(p): io.sha256(p) for p in written}}
    io.write_atomically(path, json.dumps(nan_to_null(whole), indent=1, allow_nan=False).encode())
    return path


def find_outputs(run: str) -> Outputs:
    """The files of a run that is named by its folder, its prefix or its run.json."""
    text = run.removesuffix("run.json")
    return Outputs(f"{text}/" if Path(text or ".").is_dir() and not text.endswith("/") else text)


def read_summary(path: Path) -> dict[str, Any]:
    """What a run.json holds.

    Raises:
        InputError: it is missing, or not what a run of rdmm writes.
    """
    try:
        run = json.loads(require_file(path).read_text(encoding="utf-8"))
        wrong = [k for k in ("inputs", "config", "metrics", "seconds", "versions", "outputs") if not isinstance(run[k], dict)]
        wrong += [] if isinstance(run.get("warnings", []), list) else ["warnings"]
        if wrong or not all({"path", "sha256"} <= set(v) for v in run["inputs"].values()):
            raise TypeError(f"{(wrong or ['inputs'])[0]} is not as a run writes it")
        table_metrics(run)
        reading = run["reading"] if "reading" in run else _parse_reading(run.get("command", ""))
        return {**run, "config": current(run["config"]), "reading": reading}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a run.json of rdmm ({type(error).__name__}: {error})") from error


def _parse_reading(command: str) -> dict[str, Any]:
    """How the images were read, of a run.json of version 0.1.0 that tells it by its command alone."""
    words = shlex.split(command)
    found: dict[str, Any] = {name: words[words.index(f"--{name}") + 1] for name in ("nan", "volume") if f"--{name}" in words}
    volume = {"volume": int(found["volume"])} if "volume" in found else {}
    return {**found, **volume, **({"strict": True} if "--strict" in words else {})}
