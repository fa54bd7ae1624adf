"""What the small commands do: files in, files out, a dictionary to print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rdmm import io, metrics, ops
from rdmm.grid import Grid
from rdmm.io import foreign
from rdmm.io.files import checked_output, existing
from rdmm.shape import Image
from rdmm.similarity.sinkhorn import GridSinkhorn, require_density
from rdmm.transform import Affine, Dense, Identity, Placed, Transform, composed, framed, invert
from rdmm.transport.barycenter import barycenter as barycenter_of
from rdmm.transport.barycenter import carried
from rdmm.types import InputError, Tensor


def apply(image: str, names: list[str], reference: str, out: str, *, labels: bool, invert: bool, overwrite: bool) -> dict[str, Any]:
    """``rdmm apply``."""
    path = checked_output(out, overwrite=overwrite)
    source = io.read_labels(image) if labels else io.read_image(image)
    grid = io.read_image(reference).grid
    transform = io.read_transforms(names)
    if invert:
        transform, _ = _inverse(transform, source.grid, " ".join(names))
    if grid.ndim != source.grid.ndim:
        raise InputError(f"{image} is {source.grid.ndim}D but the reference {reference} is {grid.ndim}D")
    moved = source.moved_by(framed(transform, grid), grid, mode="nearest" if labels else "linear")
    io.write_image(path, moved.data, grid, integer=labels)
    return {"written": str(path)}


def _inverse(transform: Transform, grid: Grid, name: str) -> tuple[Transform, float]:
    """Inverse of a world transform, and the residual in voxels: exact for affine maps, else of the affine part exactly and of the rest
    by iteration on ``grid``."""
    if isinstance(transform, Affine):
        return transform.inverse(), 0.0
    affine, u = _parted(framed(transform, grid), grid)
    w, residual = invert(u, grid)
    if residual > 0.5:
        raise InputError(f"{name}: cannot be inverted (residual {residual:.2g} voxels): it folds; see rdmm jacobian")
    return Placed(composed(affine.inverse(), Dense(w, grid)), grid), residual


def _parted(transform: Transform, grid: Grid) -> tuple[Affine, Tensor]:
    """(A, u) with T = A ∘ (id + u) at the voxels: A the affine map nearest to T there."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    ends = transform(x)
    points = torch.cat([x, torch.ones_like(x[:, :1])], 1).flatten(2)[0]
    matrix = torch.eye(grid.ndim + 1, dtype=x.dtype)
    matrix[:-1] = torch.linalg.lstsq(points.T, ends.flatten(2)[0].T).solution.T
    affine = Affine(matrix)
    return affine, affine.inverse()(ends) - x


def points(csv: str, names: list[str], out: str, *, overwrite: bool) -> dict[str, Any]:
    """``rdmm points``."""
    path = checked_output(out, overwrite=overwrite)
    transform = io.read_transforms(names)
    d = _ndim(transform)
    x = io.read_points(csv, d)
    y = transform(torch.as_tensor(x.T[None]))[0].numpy().T
    io.write_points(path, y)
    return {"points": len(y), "written": str(path)}


def _ndim(transform: Transform) -> int:
    last = getattr(transform, "then", transform)
    if isinstance(last, Placed):
        return last.grid.ndim
    assert isinstance(last, Affine)
    return int(last.matrix.shape[-1]) - 1


def _warp(name: str) -> tuple[torch.Tensor, Grid]:
    transform = io.read_transform(name)
    if not isinstance(transform, Placed) or not isinstance(transform.transform, Dense):
        raise InputError(f"{name}: a warp (.nii, .nii.gz) is wanted")
    return transform.transform.displacement, transform.grid


def _space(fixed: str | None, moving: str | None) -> foreign.Space:
    """The grids, as stored, of the images that are named."""
    return foreign.Space(*(None if name is None else io.read_image(name, nan="mask").grid for name in (fixed, moving)))


def convert(
    source: str, out: str, *, source_form: str | None, form: str | None, fixed: str | None, moving: str | None, overwrite: bool
) -> dict[str, Any]:
    """``rdmm convert``: one transform, fixed -> moving, from one tool's form to another's."""
    path = checked_output(out, overwrite=overwrite)
    space = _space(fixed, moving)
    transform = foreign.read_foreign(source, source_form, space)
    foreign.write_foreign(path, transform, form, space)
    return {"written": str(path)}


def compose(names: list[str], out: str, *, form: str | None, fixed: str | None, moving: str | None, overwrite: bool) -> dict[str, Any]:
    """``rdmm compose``: a list of -t arguments as one transform."""
    path = checked_output(out, overwrite=overwrite)
    foreign.write_foreign(path, io.read_transforms(names), form, _space(fixed, moving))
    return {"written": str(path)}


def invert_transform(
    source: str, out: str, *, source_form: str | None, form: str | None, fixed: str | None, moving: str | None, overwrite: bool
) -> dict[str, Any]:
    """``rdmm invert``: an affine exactly; of anything with a warp its affine part exactly and the rest by iteration, on the warp's own
    grid (or the fixed image's), written on the moving image's where that is given."""
    path = checked_output(out, overwrite=overwrite)
    space = _space(fixed, moving)
    transform = foreign.read_foreign(source, source_form, space)
    grid = space.fixed if isinstance(transform, Affine) else foreign.grid_of(transform, space)
    inverse, residual = _inverse(transform, grid, source)  # type: ignore[arg-type]  # an affine map asks for no grid
    foreign.write_foreign(path, inverse, form, foreign.Space(space.moving or grid, space.fixed))
    return {"residual_voxels": residual, "written": str(path)}


def jacobian(warp: str, out: str, *, take_log: bool, overwrite: bool) -> dict[str, Any]:
    """``rdmm jacobian``."""
    path = checked_output(out, overwrite=overwrite)
    u, grid = _warp(warp)
    det = ops.jacobian_determinant(u.double(), grid)[None]
    io.write_image(path, det.clamp_min(1e-3).log() if take_log else det, grid)
    return {**metrics.regularity(u, grid), "written": str(path)}


def evaluate(names: list[str], fixed_labels: str | None, moving_labels: str | None, landmarks: str | None) -> dict[str, Any]:
    """``rdmm evaluate``: measures of a transform, whoever made it."""
    transform, out = io.read_transforms(names), dict[str, Any]()
    warps = [io.read_transform(n) for n in names if n.endswith((".nii", ".nii.gz"))]
    if warps:
        assert isinstance(warps[0], Placed) and isinstance(warps[0].transform, Dense)
        out |= metrics.regularity(warps[0].transform.displacement, warps[0].grid)
    if fixed_labels is not None and moving_labels is not None:
        fixed, moving = io.read_labels(fixed_labels), io.read_labels(moving_labels)
        maps = (framed(transform, fixed.grid), framed(Identity(), fixed.grid))
        there, as_stored = (moving.moved_by(t, fixed.grid, mode="nearest").data for t in maps)
        out |= metrics.overlap(there, fixed.data, as_stored, fixed.grid.voxel)
    if landmarks is not None:
        a, b, _ = io.read_landmarks(landmarks, _ndim(transform))
        before, after = metrics.tre(a, b), metrics.tre(a, b, transform)
        out |= {"tre_before_mm": float(before.mean()), "tre_mm": float(after.mean()), "tre_max_mm": float(after.max()), "landmarks": len(a)}
    return out


def info(name: str) -> dict[str, Any]:
    """``rdmm info``."""
    path = existing(name)
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
    import nibabel as nib

    axes = "".join(nib.aff2axcodes(np.asarray(grid.affine))) if grid.ndim == 3 else "2D"
    return {
        "shape": list(grid.shape),
        "voxel_mm": [round(v, 6) for v in grid.voxel],
        "axes": axes,
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
    u, grid = _warp(name)
    length = u.square().sum(1).sqrt() * grid.length
    return {
        "kind": "warp, fixed -> moving",
        **_geometry(grid),
        "mean_mm": float(length.mean()),
        "max_mm": float(length.max()),
    } | metrics.regularity(u, grid)


def make_demo(out: str, seed: int, *, overwrite: bool) -> dict[str, str]:
    """Write the synthetic pair, its labels and regions under ``out``; the paths by name."""
    from rdmm.data.synthetic import shapes_pair
    from rdmm.io.files import Outputs
    from rdmm.registration import OPTIONAL, RESULTS

    pair, fixed_labels, moving_labels = shapes_pair(seed, variation="together")
    assert pair.regions is not None
    images = {
        "fixed": pair.fixed,
        "moving": pair.moving,
        "fixed_labels": Image(fixed_labels, pair.fixed.grid),
        "moving_labels": Image(moving_labels, pair.moving.grid),
        "regions": pair.regions,
    }
    names = {k: f"{k}.nii.gz" for k in images}
    outputs = Outputs.prepare(os.path.join(out, ""), [*names.values(), *RESULTS, *OPTIONAL], overwrite=overwrite)
    for name, image in images.items():
        io.write_image(outputs.path(names[name]), image.data, image.grid, integer="fixed" != name != "moving")
    return {k: str(Path(outputs.path(v))) for k, v in names.items()}


def barycenter(files: list[str], out: str, *, weights: list[float], labels: bool, blur: float, overwrite: bool) -> dict[str, Any]:
    """``rdmm barycenter``: of densities, or (``labels``) of each label of label maps."""
    path = checked_output(out, overwrite=overwrite)
    if not files:
        raise InputError("a barycenter needs at least one image")
    read = io.read_labels if labels else io.read_image
    images = [read(f) for f in files]
    grid = images[0].grid
    for name, image in zip(files[1:], images[1:], strict=True):
        if image.grid.ndim != grid.ndim:
            raise InputError(f"{name} is {image.grid.ndim}D but {files[0]} is {grid.ndim}D")
    mode: Literal["nearest", "linear"] = "nearest" if labels else "linear"
    data = torch.cat([image.moved_by(framed(Identity(), grid), grid, mode=mode).data[:, 0] for image in images])
    shares = weights or [1 / len(files)] * len(files)
    mean = _mean_labels(data, shares, grid, blur) if labels else _mean_density(data, shares, grid, blur)
    io.write_image(path, mean[None, None], grid, integer=labels)
    return {"written": str(path), "mass" if not labels else "voxels": float(mean.gt(0).sum() if labels else mean.sum())}


def _mean_density(data: Tensor, weights: list[float], grid: Grid, blur: float) -> Tensor:
    """Barycenter (*s) of densities (k, *s), with the mean of their masses."""
    require_density(data, "an image")
    masses = data.flatten(1).sum(1)
    w = torch.tensor(weights)
    mean = barycenter_of(data, weights, grid.spacing, blur, 1e-3, 300)
    return mean * float((w * masses).sum() / w.sum())


def _mean_labels(data: Tensor, weights: list[float], grid: Grid, blur: float) -> Tensor:
    """Each voxel's label is that of the largest barycenter of one label; 0 where all together are less than a half."""
    found = sorted({int(v) for v in data.round().unique().tolist()} - {0})
    for label in found:
        absent = [k for k in range(len(data)) if not bool((data[k].round() == label).any())]
        if absent:
            raise InputError(
                f"label {label} is missing from image {absent[0] + 1}: a barycenter needs it in all; leave it out of the others"
            )
    if not found:
        raise InputError("the label maps are 0 everywhere")
    densities = torch.stack([_mean_density((data.round() == label).float(), weights, grid, blur) for label in found])
    labels = torch.tensor([0, *found])[densities.argmax(0) + 1]
    return torch.where(densities.sum(0) > 0.5, labels, 0).float()


def transfer(fixed: str, moving: str, labels: str, out: str, *, blur: float, reach: float | None, overwrite: bool) -> dict[str, Any]:
    """``rdmm transfer``: labels of a moving density to a fixed one by the plan between them."""
    path = checked_output(out, overwrite=overwrite)
    target, source = io.read_image(fixed), io.read_image(moving)
    grid = target.grid
    onto = framed(Identity(), grid)
    names = io.read_labels(labels, source).moved_by(onto, grid, mode="nearest").data[0, 0].round()
    similarity = GridSinkhorn(blur, reach, tolerance=0.02)
    densities = source.moved_by(onto, grid), target
    found = similarity.potentials(*densities)
    a = densities[0].data[0, 0]
    values = torch.tensor(sorted(int(v) for v in names[a > 0].unique().tolist()))
    onehot = torch.stack([(names == v).float() for v in values])
    shares = carried(onehot, a / a.sum() if reach is None else a, found.f[0], grid.spacing, blur)
    result = torch.where(target.data[0, 0] > 0, values[shares.argmax(0)], 0).float()
    io.write_image(path, result[None, None], grid, integer=True)
    return {"labels": len(values), "marginal_error": found.error, "written": str(path)}
