"""Describe the content of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from rdmm import io, metrics
from rdmm.io.files import require_file
from rdmm.io.formats.header import axis_codes
from rdmm.io.nifti import is_image_name
from rdmm.io.tools.start import Start
from rdmm.io.transforms import READERS, recognise
from rdmm.registration.record import find_outputs, read_summary
from rdmm.runtime.warnings import other_warnings
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Affine, Dense, Placed, flat
from rdmm.types import InputError, Tensor

TRANSFORM_ENDINGS = (".mat", ".txt", ".tfm", ".h5", ".lta", ".xfm", ".1d", ".npz")
"""Endings of files of transforms, in lower case, beside those of images."""


def info(name: str) -> dict[str, Any]:
    """``rdmm info``: what a file, or the folder of a run, contains.

    Raises:
        InputError: the file is missing, damaged, or of no known kind.
    """
    if os.path.isdir(name):
        return _folder_facts(name)
    path = require_file(name)
    content = _content_facts(path)  # before the checksum: a file that is refused is not read to its end
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": io.sha256(path)} | content


def _content_facts(path: Path) -> dict[str, Any]:
    name, ending = os.fspath(path), path.suffix.lower()
    if is_image_name(name):
        return _transform_facts(name) if Start.of(path).is_field else _image_facts(name)
    if io.is_mesh(name):
        return _mesh_facts(name)
    if ending in TRANSFORM_ENDINGS:
        return _transform_facts(name)
    if ending in (".safetensors", ".pt", ".pth", ".ckpt"):
        return _model_facts(path) if io.models.is_model(path) else _tensor_facts(path)
    if ending == ".json":
        return _run_facts(path)
    raise InputError(
        f"{path}: unknown kind of file; give an image or warp (.nii, .nii.gz), shape (.vtk, .ply),"
        f" transform ({', '.join(TRANSFORM_ENDINGS)}), .safetensors or run.json"
    )


def _mesh_facts(name: str) -> dict[str, Any]:
    mesh = io.read_mesh(name)
    if mesh.cells is None:
        kind, count = "points", 0
    else:
        count, corners = mesh.cells.shape
        kind = {2: "segments", 3: "triangles"}[corners]
    return {
        "kind": f"shape of {kind}",
        "vertices": len(mesh.points),
        "cells": count,
        "lowest": _rounded(np.min(mesh.points, 0)),
        "highest": _rounded(np.max(mesh.points, 0)),
    }


def _rounded(point: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in point]


def _transform_facts(name: str) -> dict[str, Any]:
    """Whose transform a file is, and what it holds, as far as the file alone tells."""
    forms = recognise(Path(name))
    if len(forms) > 1:
        return {"kind": f"transform of {' or '.join(forms)}: the file does not tell which; read it with --from", "forms": forms}
    if READERS[forms[0]].needs_images:
        return {"kind": f"transform of {forms[0]}: what it does depends on the grids of both images", "form": forms[0]}
    transform = io.read_transform(name)
    own = {"form": forms[0], "dimensions": transform.ndim}
    if isinstance(transform, Affine):
        return {"kind": "affine, fixed -> moving, RAS+ mm", **own, "matrix": np.round(transform.matrix.numpy(), 6).tolist()}
    if isinstance(transform, Placed) and isinstance(transform.transform, Dense):
        return {"kind": "warp, fixed -> moving", **own, **_warp_facts(transform.transform.displacement, transform.grid)}
    parts = [
        f"warp of {'x'.join(map(str, m.grid.shape))} voxels"
        if isinstance(m, Placed)
        else f"affine {np.round(m.matrix.numpy(), 6).tolist()}"
        for m in flat(transform)
        if isinstance(m, Affine | Placed)
    ]
    return {"kind": "chain of transforms, fixed -> moving, applied to a point in this order, RAS+ mm", **own, "parts": parts}


def _folder_facts(name: str) -> dict[str, Any]:
    """A folder of results: the run in it."""
    record = find_outputs(name).path("run.json")
    if not record.is_file():
        raise InputError(f"{name}: is a directory without run.json; give a file, or the folder or prefix of rdmm register's results")
    return {"folder": name, **_run_facts(record)}


def _run_facts(path: Path) -> dict[str, Any]:
    run = read_summary(path)
    return {
        "kind": "run",
        "status": run["status"],
        "verdict": run.get("verdict", "none: a run of an earlier version"),
        "reasons": run.get("reasons", []),
        "command": run["command"],
        "warnings": other_warnings(run.get("warnings", []), run.get("reasons", [])),
        **{k: v["path"] for k, v in run["inputs"].items()},
        **run["metrics"],
        "seconds": run["seconds"]["total"],
        "files": list(run["outputs"]),
    }


def _tensor_facts(path: Path) -> dict[str, Any]:
    """Shapes of the tensors of a .safetensors file, such as initial conditions."""
    from safetensors.torch import load

    try:
        return {"kind": "tensors", **{k: list(v.shape) for k, v in load(path.read_bytes()).items()}}
    except Exception as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error


def _model_facts(path: Path) -> dict[str, Any]:
    """What a trained model predicts, and for which images."""
    model = io.models.read_model(path)
    parts = [k for k in ("affine", "predictor") if model.settings.get(k)]
    dynamics = model.settings.get("register", {}).get("dynamics")
    shape = model.settings[parts[0]].get("shape")
    return {
        "kind": "trained model",
        "networks": " and ".join(parts),
        "dynamics": str(dynamics.get("_target_", "")).rpartition(".")[2] if isinstance(dynamics, dict) else "",
        "shape": "x".join(map(str, shape)) if isinstance(shape, list) else "",
        "steps": model.settings.get("steps", 1),
        "parameters": sum(x.numel() for x in model.tensors.values()),
        **dict(model.facts),
    }


def _geometry(grid: Grid) -> dict[str, Any]:
    return {
        "shape": list(grid.shape),
        "voxel_mm": [round(v, 6) for v in grid.voxel],
        "axes": axis_codes(grid),
        "box_mm": grid.corners().round(2).tolist(),
    }


def _image_facts(name: str) -> dict[str, Any]:
    image = io.read_image(name, nan="mask")
    x = image.data if image.mask is None else image.data[image.mask > 0]
    bad = 0 if image.mask is None else int((image.mask == 0).sum())
    return {
        "kind": "image",
        **_geometry(image.grid),
        "min": float(x.min()),
        "max": float(x.max()),
        "mean": float(x.double().mean()),
        "not_finite": bad,
    }


def _warp_facts(u: Tensor, grid: Grid) -> dict[str, Any]:
    length = u.square().sum(1).sqrt() * grid.length
    return {
        **_geometry(grid),
        "mean_mm": float(length.mean()),
        "max_mm": float(length.max()),
    } | metrics.regularity(u, grid)
