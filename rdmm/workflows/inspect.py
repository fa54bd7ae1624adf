"""Describe the content of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from rdmm import io, metrics
from rdmm.config.build import resolve
from rdmm.config.plugins import hint, is_trusted
from rdmm.config.renamed import current
from rdmm.config.trust import foreign_targets
from rdmm.io.files import require_file
from rdmm.io.formats.choice import ENDINGS, is_image_name, read_raw
from rdmm.io.formats.header import axis_codes
from rdmm.io.formats.itk_files import holds_series
from rdmm.io.images import as_volumes
from rdmm.io.meshes import MESH_ENDINGS, read_polydata
from rdmm.io.meshes.mesh import Cells
from rdmm.io.models import is_model, read_model
from rdmm.io.points import MARKUP_ENDINGS
from rdmm.io.tables import read_rows
from rdmm.io.tools.start import Start
from rdmm.io.tools.unreadable import describe_unreadable
from rdmm.io.transforms import READERS, recognise
from rdmm.registration.record import find_outputs, read_summary
from rdmm.report.html import runnable
from rdmm.runtime.warnings import other_warnings
from rdmm.spatial.grid import Grid
from rdmm.spatial.label_map import is_label_map
from rdmm.spatial.transform import Affine, Dense, Placed, flat
from rdmm.types import InputError, Tensor, counted

TRANSFORM_ENDINGS = (".mat", ".txt", ".tfm", ".h5", ".lta", ".xfm", ".1d", ".npz")
"""Endings of files of transforms, in lower case, beside those of images."""

TOLERANCE = 1e-5
"""Largest difference of an entry of a matrix from that of a simpler map, for which it is taken: files hold float32."""

MOST_SHOWN = 20
"""Labels that are shown by their numbers."""


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
    if name.lower().endswith((".csv", ".tsv", *MARKUP_ENDINGS)):
        return _list_facts(path)
    if ending in TRANSFORM_ENDINGS:
        return _transform_facts(name)
    if ending in (".safetensors", ".pt", ".pth", ".ckpt"):
        return _model_facts(path) if is_model(path) else _tensor_facts(path)
    if ending == ".json":
        return _run_facts(path)
    if kind := describe_unreadable(Start.of(path)):
        raise InputError(f"{path}: {kind}")
    raise InputError(
        f"{path}: unknown kind of file; give an image or warp ({', '.join(ENDINGS)}), mesh ({', '.join(MESH_ENDINGS)}), list (.csv, .tsv,"
        f" {', '.join(MARKUP_ENDINGS)}), transform ({', '.join(TRANSFORM_ENDINGS)}), .safetensors or run.json"
    )


def _mesh_facts(name: str) -> dict[str, Any]:
    data = read_polydata(name)
    kinds = dict.fromkeys(_cell_name(c) for c in data.cells if c.kind != "VERTICES")
    return {
        "kind": f"shape of {' and '.join(kinds) or 'points'}",
        "vertices": len(data.points),
        "cells": sum(c.count for c in data.cells if c.kind != "VERTICES"),
        "point_data": ", ".join(data.point_data) or "none",
        "cell_data": ", ".join(data.cell_data) or "none",
        "frame": f"{data.frame}, as the file declares; shown in RAS+" if data.frame else "RAS+, as the file declares no other",
        "lowest": _rounded(np.min(data.points, 0)),
        "highest": _rounded(np.max(data.points, 0)),
    }


def _cell_name(cells: Cells) -> str:
    """What cells of one kind are called."""
    simplest, name = {"LINES": (2, "segments"), "POLYGONS": (3, "triangles")}.get(cells.kind, (0, ""))
    return name if (np.diff(cells.offsets) == simplest).all() else {"LINES": "lines", "POLYGONS": "polygons"}.get(cells.kind, "triangles")


def _list_facts(path: Path) -> dict[str, Any]:
    """A table of text, or a list of points."""
    is_markups = path.name.lower().endswith(MARKUP_ENDINGS)
    table = io.read_points(path, 3).table if is_markups else read_rows(path)
    columns = [c.lower() for c in table.columns]
    facts: dict[str, Any] = {
        "kind": "list of points" if set("xy") <= set(columns) else "table",
        "rows": len(table.rows),
        "columns": ", ".join(table.columns),
    }
    if set("xy") <= set(columns):
        points = io.read_points(path, 3 if "z" in columns else 2).points
        facts |= {"lowest": _rounded(np.min(points, 0)), "highest": _rounded(np.max(points, 0))}
    return facts


def _rounded(point: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in point]


def _transform_facts(name: str) -> dict[str, Any]:
    """Whose transform a file is, and what it holds, as far as the file alone tells."""
    forms = recognise(Path(name))
    if len(forms) > 1:
        convert = f"rdmm convert {name} OUT --from {'|'.join(forms)}"
        return {"kind": f"transform of {' or '.join(forms)}: the file does not tell which; say it: {convert}", "forms": forms}
    if READERS[forms[0]].needs_images:
        return {"kind": f"transform of {forms[0]}: what it does depends on the grids of both images", "form": forms[0]}
    transform = io.read_transform(name)
    own = {"form": forms[0], "dimensions": transform.ndim}
    if isinstance(transform, Affine):
        return {"kind": "affine, fixed -> moving, RAS+ mm", **own, **_affine_facts(transform.matrix.numpy())}
    if isinstance(transform, Placed) and isinstance(transform.transform, Dense):
        return {"kind": "warp, fixed -> moving", **own, **_warp_facts(transform.transform.displacement, transform.grid)}
    parts = [
        f"warp of {'x'.join(map(str, m.grid.shape))} voxels" if isinstance(m, Placed) else f"affine ({_in_words(m.matrix.numpy())})"
        for m in flat(transform)
        if isinstance(m, Affine | Placed)
    ]
    return {"kind": "chain of transforms, fixed -> moving, applied to a point in this order, RAS+ mm", **own, "parts": parts}


def _affine_facts(matrix: np.ndarray) -> dict[str, Any]:
    """A matrix (d+1, d+1) of world millimeters, and what it does."""
    rotation, scales = _rotation_and_scales(matrix)
    return {
        "in_words": _in_words(matrix),
        "determinant": float(np.linalg.det(matrix)),
        "rotation_degrees": _angle(rotation),
        "scales": np.round(scales, 6).tolist(),
        "translation_mm": np.round(matrix[:-1, -1], 6).tolist(),
        "matrix": np.round(matrix, 6).tolist(),
    }


def _rotation_and_scales(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation nearest to the linear part, and the factors by which it stretches, the largest first; a mirrored one is negative."""
    u, scales, v = np.linalg.svd(matrix[:-1, :-1])
    mirror = np.ones(len(scales))
    mirror[-1] = np.sign(np.linalg.det(u @ v))
    return u @ np.diag(mirror) @ v, scales * mirror


def _angle(rotation: np.ndarray) -> float:
    """The angle of a rotation in 2D or 3D, degrees from 0 to 180."""
    cosine = (np.trace(rotation) - (len(rotation) - 2)) / 2
    sine = np.linalg.norm(rotation - rotation.T) / np.sqrt(8)
    return float(np.degrees(np.arctan2(sine, cosine)))


def _in_words(matrix: np.ndarray) -> str:
    """What a matrix does: the simplest kind of map that it is, to TOLERANCE."""
    rotation, scales = _rotation_and_scales(matrix)
    moves = f"moves the world's origin by ({', '.join(f'{x:.4g}' for x in matrix[:-1, -1])}) mm"
    turns = f"turns by {_angle(rotation):.4g} degrees"
    if np.allclose(matrix, np.eye(len(matrix)), atol=TOLERANCE):
        return "identity"
    if np.allclose(matrix[:-1, :-1], np.eye(len(scales)), atol=TOLERANCE):
        return f"translation: {moves}"
    if np.allclose(scales, 1, atol=TOLERANCE):
        return f"rigid: {turns}, {moves}"
    if np.allclose(scales, scales[0], atol=TOLERANCE):
        return f"similarity: scales by {scales[0]:.5g}, {turns}, {moves}"
    mirrors = ", mirrors" if scales[-1] < 0 else ""
    return f"affine: stretches by {', '.join(f'{abs(x):.4g}' for x in scales)}{mirrors}, {turns}, {moves}"


def _folder_facts(name: str) -> dict[str, Any]:
    """A folder of results: the run in it; or a DICOM series."""
    record = find_outputs(name).path("run.json")
    if not record.is_file() and holds_series(Path(name)):
        return {"folder": name, "sha256": io.sha256(name), **_image_facts(name)}
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
        "command": runnable(run["command"]),
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
    model = read_model(path)
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
        **_needed_classes(model.settings),
        **dict(model.facts),
    }


def _needed_classes(settings: Any) -> dict[str, Any]:
    """The classes from outside rdmm that a model needs, if any. Those of trusted packages are looked up.

    Raises:
        ConfigError: a trusted package has no such class.
    """
    needed = foreign_targets(current(settings))
    for name in filter(is_trusted, needed):
        resolve(name, "the model")
    return {"needs": [name if is_trusted(name) else f"{name}{hint(name)}" for name in needed]} if needed else {}


def _geometry(grid: Grid) -> dict[str, Any]:
    return {
        "shape": list(grid.shape),
        "voxel_mm": [round(v, 6) for v in grid.voxel],
        "axes": axis_codes(grid),
        "box_mm": grid.corners().round(2).tolist(),
    }


def _image_facts(name: str) -> dict[str, Any]:
    raw = read_raw(name, strict=False)
    volumes, grid = as_volumes(raw)
    finite = volumes[np.isfinite(volumes)]
    if not finite.size:
        raise InputError(f"{name}: no finite voxel: all are NaN or Inf")
    return {
        "kind": "image",
        "content": _content(volumes[..., 0]),
        **_geometry(grid),
        "volumes": volumes.shape[-1],
        "unit": raw.header.placement.unit,
        "type": str(raw.storage.dtype),
        "min": float(finite.min()),
        "max": float(finite.max()),
        "mean": float(finite.mean(dtype=np.float64)),
        "not_finite": volumes.size - finite.size,
    }


def _content(voxels: np.ndarray) -> str:
    """Whether voxels are labels, and which, or intensities."""
    if not is_label_map(voxels):
        return "intensities"
    labels = [int(x) for x in np.unique(voxels) if x]
    shown = ", ".join(map(str, labels[:MOST_SHOWN])) + (", ..." if len(labels) > MOST_SHOWN else "")
    return f"label map of {counted(len(labels), 'label')}: {shown}"


def _warp_facts(u: Tensor, grid: Grid) -> dict[str, Any]:
    length = u.square().sum(1).sqrt() * grid.length
    return {
        **_geometry(grid),
        "mean_mm": float(length.mean()),
        "max_mm": float(length.max()),
    } | metrics.regularity(u, grid)
