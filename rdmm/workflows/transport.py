"""Commands of optimal transport: barycenter and transfer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from rdmm import io
from rdmm.io.formats.choice import check_image_output
from rdmm.similarity.sinkhorn_images import GridSinkhorn, require_density
from rdmm.spatial.grid import Grid, require_one_dimension
from rdmm.spatial.image import Image
from rdmm.spatial.pair import format_boxes
from rdmm.spatial.transform import Identity, framed
from rdmm.transport.barycenter import barycenter as barycenter_of
from rdmm.transport.barycenter import transfer_along_plan
from rdmm.types import InputError, Tensor

log = logging.getLogger(__name__)


def barycenter(files: list[str], out: str, *, weights: list[float], labels: bool, blur: float, overwrite: bool) -> dict[str, Any]:
    """``rdmm barycenter``: write the barycenter of density images, or of label maps (``labels``), on the grid of the first.

    Args:
        weights: one number per image; []: all equal.
        blur: sqrt(eps), in units of the longest edge.
    """
    path = check_image_output(out, overwrite=overwrite)
    if not files:
        raise InputError("a barycenter needs at least one image; give its file")
    read = io.read_labels if labels else io.read_image
    images = [read(f) for f in files]
    grid = images[0].grid
    require_one_dimension({name: image.grid.ndim for name, image in zip(files, images, strict=True)})
    data = torch.cat([_onto(image, grid, name, labels=labels).data[:, 0] for name, image in zip(files, images, strict=True)])
    fractions = weights or [1 / len(files)] * len(files)
    mean = _mean_labels(data, fractions, grid, blur) if labels else _mean_density(data, fractions, grid, blur)
    io.write_image(path, mean[None, None], grid, integer=labels)
    size = {"voxels": float(mean.gt(0).sum())} if labels else {"mass": float(mean.sum())}
    return {"written": str(path), **size}


def _onto(image: Image, grid: Grid, name: str, *, labels: bool = False) -> Image:
    """An image on another grid, 0 outside its field of view. The log says which share of its mass (or labels) lies outside the grid.

    Raises:
        InputError: all of it does; ``name`` is the file.
    """
    moved = image.moved_by(framed(Identity(), grid), grid, mode="nearest" if labels else "linear", outside=0)
    own = image.grid
    inside = grid.contains(grid.from_world(own.to_world(own.identity(torch.zeros(1, dtype=torch.float64)))))
    mass = (image.data != 0).double() if labels else image.data.double().clamp_min(0)
    lost = 1 - float(mass[inside].sum() / mass.sum()) if bool(mass.any()) else 0.0
    if not bool(inside.any()) or lost == 1:
        raise InputError(f"{name}: nothing of it lies on the grid of the first image: {format_boxes([own, grid])}; align them first")
    if lost > 1e-6:
        log.warning("%s: %.2g %% of it lies outside the grid of the first image, and is left out", name, 100 * lost)
    return moved


def _mean_density(data: Tensor, weights: list[float], grid: Grid, blur: float) -> Tensor:
    """Barycenter (*s) of densities (k, *s). Its mass is the weighted mean of their masses."""
    require_density(data, "an image")
    masses = data.flatten(1).sum(1)
    w = torch.tensor(weights)
    mean = barycenter_of(data, weights, grid.spacing, blur, 1e-3, 300)
    return mean * float((w * masses).sum() / w.sum())


def _mean_labels(data: Tensor, weights: list[float], grid: Grid, blur: float) -> Tensor:
    """Label map (*s): at each voxel the label whose barycenter is largest, or 0 where the sum of all barycenters is at most 0.5."""
    found = sorted(set(data.unique().tolist()) - {0})
    for label in found:
        absent = [k for k in range(len(data)) if not bool((data[k] == label).any())]
        if absent:
            raise InputError(
                f"label {label} is missing from image {absent[0] + 1}: every image needs every label; remove it from the others"
            )
    if not found:
        raise InputError("the label maps are 0 everywhere")
    labels, total = _largest(found, (_mean_density((data == label).float(), weights, grid, blur) for label in found))
    return torch.where(total > 0.5, labels, 0)


def _largest(labels: Sequence[int], shares: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The label whose share (*s) is largest at each voxel, and the sum of the shares. Only one share is in memory at a time."""
    best = total = chosen = None
    for label, share in zip(labels, shares, strict=True):
        if best is None or total is None or chosen is None:
            best, total, chosen = share, share, torch.full(share.shape, label)
            continue
        chosen = torch.where(share > best, label, chosen)
        best, total = torch.maximum(best, share), total + share
    assert chosen is not None and total is not None
    return chosen, total


def transfer(fixed: str, moving: str, labels: str, out: str, *, blur: float, reach: float | None, overwrite: bool) -> dict[str, Any]:
    """``rdmm transfer``: write the labels of a moving density on a fixed one, transferred along the transport plan between them.

    Args:
        blur, reach: sqrt(eps) and sqrt(rho), in units of the longest edge; reach None: all mass is moved.
    """
    path = check_image_output(out, overwrite=overwrite)
    target, source = io.read_image(fixed), io.read_image(moving)
    require_one_dimension({fixed: target.grid.ndim, moving: source.grid.ndim})
    grid = target.grid
    names = _onto(io.read_labels(labels, source), grid, labels, labels=True).data[0, 0]
    similarity = GridSinkhorn(blur, reach, tolerance=0.02)
    densities = _onto(source, grid, moving), target
    found = similarity.potentials(*densities)
    a = densities[0].data[0, 0]
    values = names[a > 0].unique().tolist()
    onehot = ((names == v).float() for v in values)
    shares = transfer_along_plan(onehot, a / a.sum() if reach is None else a, found.f[0], grid.spacing, blur)
    result = torch.where(target.data[0, 0] > 0, _largest(values, shares)[0], 0)
    io.write_image(path, result[None, None], grid, integer=True)
    return {"labels": len(values), "marginal_error": found.error, "written": str(path)}
