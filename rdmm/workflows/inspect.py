"""What a file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rdmm import io, metrics
from rdmm.io.files import require_file
from rdmm.io.nifti import axis_codes
from rdmm.spatial.grid import Grid
from rdmm.spatial.transform import Affine
from rdmm.types import InputError
from rdmm.workflows.transforms import read_displacement


def info(name: str) -> dict[str, Any]:
    """``rdmm info``."""
    path = require_file(name)
    facts: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size, "sha256": io.sha256(path)}
    if name.endswith((".nii", ".nii.gz")):
        return facts | (_warp_facts(name) if io.nifti.peek_shape(name)[3:] in ((1, 3), (1, 2)) else _image_facts(name))
    if io.is_mesh(name):
        mesh = io.read_mesh(name)
        kinds = {None: "points", 2: "segments", 3: "triangles"}
        cells = None if mesh.cells is None else mesh.cells.shape
        box = [[round(float(x), 4) for x in f(mesh.points, 0)] for f in (np.min, np.max)]
        facts |= {"kind": f"shape of {kinds[None if cells is None else cells[1]]}", "vertices": len(mesh.points)}
        return facts | {"cells": 0 if cells is None else cells[0], "lowest": box[0], "highest": box[1]}
    if name.endswith((".mat", ".txt", ".tfm")):
        transform = io.read_transform(name)
        assert isinstance(transform, Affine)
        return facts | {"kind": "affine, fixed -> moving, RAS+ mm", "matrix": np.round(transform.matrix.numpy(), 6).tolist()}
    if name.endswith((".safetensors", ".pt", ".pth", ".ckpt")):
        return facts | _tensor_facts(path)
    if name.endswith(".json"):
        try:
            run = json.loads(path.read_text())
            return facts | {"kind": "run", "status": run["status"], **run["metrics"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a run.json of rdmm ({error})") from error
    raise InputError(f"{path}: an image or warp (.nii, .nii.gz), shape (.vtk, .ply), affine (.mat), .safetensors or run.json is wanted")


def _tensor_facts(path: Path) -> dict[str, Any]:
    """Of initial conditions their shapes; of a trained model what it is for."""
    if not io.models.is_model(path):
        from safetensors.torch import load

        try:
            return {"kind": "tensors", **{k: list(v.shape) for k, v in load(path.read_bytes()).items()}}
        except Exception as error:
            raise InputError(f"{path}: not a safetensors file ({error})") from error
    model = io.models.read_model(path)
    parts = [k for k in ("affine", "predictor") if model.settings.get(k)]
    dynamics = model.settings.get("register", {}).get("dynamics", {}).get("_target_", "").rpartition(".")[2]
    shape = next((model.settings[k].get("shape") for k in parts if isinstance(model.settings[k], dict)), None)
    return {
        "kind": "trained model",
        "networks": " and ".join(parts),
        "dynamics": dynamics,
        "shape": "x".join(map(str, shape or [])),
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
        "mean": float(x.mean()),
        "not_finite": bad,
    }


def _warp_facts(name: str) -> dict[str, Any]:
    u, grid = read_displacement(name)
    length = u.square().sum(1).sqrt() * grid.length
    return {
        "kind": "warp, fixed -> moving",
        **_geometry(grid),
        "mean_mm": float(length.mean()),
        "max_mm": float(length.max()),
    } | metrics.regularity(u, grid)
