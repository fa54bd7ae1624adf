"""Commands on transforms: apply, points, invert, convert, compose, jacobian, evaluate."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rdmm import io, metrics
from rdmm.io.files import check_output, require_ending
from rdmm.io.nifti import ENDINGS
from rdmm.io.transforms import choose_writer, read_transform_as, write_transform
from rdmm.io.vectors import Space, affine_matrix, choose_grid
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid, is_invertible, require_one_dimension
from rdmm.spatial.image import Image
from rdmm.spatial.pair import format_boxes
from rdmm.spatial.transform import (
    Affine,
    Dense,
    Identity,
    Placed,
    Transform,
    compose_all,
    composed,
    displacement,
    flat,
    framed,
    invert,
    split,
)
from rdmm.types import ConfigError, DivergenceError, InputError, Tensor

log = logging.getLogger(__name__)


def apply(
    image: str,
    names: list[str],
    reference: str,
    out: str,
    *,
    labels: bool = False,
    invert: bool = False,
    default_value: float = 0,
    volume: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """``rdmm apply``: resample an image, or a label map, onto the grid of ``reference`` and write it; each volume of a 4D file.

    Args:
        names: -t arguments; the last is applied first.
        labels: nearest neighbor; the numbers of labels stay exact.
        invert: apply the inverse of all transforms together.
        default_value: value outside the image's field of view.
        volume: number of the only volume to move, from 0; None: all.

    Raises:
        ConfigError: a default value that is no label.
        InputError: a file cannot be used, or the dimensions differ.
        DivergenceError: with ``invert``, the transforms fold, so that they have no inverse.
    """
    if labels and not (isinstance(default_value, int) and -(2**63) <= default_value < 2**63):
        raise ConfigError(f"--default-value {default_value}: with --labels it is a whole number of 64 bits, such as 0")
    path = check_output(require_ending(out, ENDINGS, "an image"), overwrite=overwrite)
    volumes, grid = io.read_volumes(image, volume, labels=labels), io.read_grid(reference)
    source = volumes[0].grid
    transform = io.read_transforms(names)
    require_one_dimension({image: source.ndim, reference: grid.ndim, " ".join(names): transform.ndim})
    if invert:
        transform, _ = _invert_in_world(transform, source, " ".join(names))
    _warn_outside(transform, _sparse_points(grid), "reference")
    total = framed(transform, grid)
    data = torch.cat([_moved(v, total, grid, "nearest" if labels else "linear", default_value) for v in volumes], 1)
    io.write_image(path, data, grid, integer=labels, missing=True)
    return {"written": str(path)}


def _moved(image: Image, transform: Transform, grid: Grid, mode: ops.Mode, outside: float) -> Tensor:
    """The image (1, 1, *s) moved onto ``grid``. Voxels with mask 0, which have no value, have no weight in the interpolation; the result is
    NaN where one of them is the nearest voxel."""
    moved = image.moved_by(transform, grid, mode=mode, outside=outside)
    if image.mask is None:
        return moved.data
    mask = Image(image.mask, image.grid)
    weight = mask.moved_by(transform, grid).data
    nearest = mask.moved_by(transform, grid, mode="nearest", outside=2.0).data  # 2 outside the field of view
    return torch.where(nearest == 1, moved.data / weight, torch.where(nearest == 0, torch.nan, outside))


def _sparse_points(grid: Grid, count: int = 10**5) -> Tensor:
    """About ``count`` voxels of a grid, world millimeters (1, d, *s)."""
    step = max(1, int((math.prod(grid.shape) / count) ** (1 / grid.ndim)))
    sparse = grid.strided([min(step, (n + 1) // 2) for n in grid.shape])
    return sparse.to_world(sparse.identity(torch.zeros(1, dtype=torch.float64)))


def _warn_outside(transform: Transform, x: Tensor, what: str) -> None:
    """Warn of points x (1, d, *t), world millimeters, that reach a warp of a file outside its grid, where it is the identity."""
    for m in flat(transform):
        if isinstance(m, Placed) and isinstance(m.transform, Dense) and m.transform.outside == "identity":
            share = 1 - float(m.grid.contains(m.grid.from_world(x)).double().mean())
            if share > 0:
                log.warning(
                    "%.2g %% of the %s is outside a warp's grid %s: there the warp is the identity, as in ITK",
                    100 * share,
                    what,
                    format_boxes([m.grid]),
                )
        x = m(x)


def _invert_in_world(transform: Transform, grid: Grid | None, name: str) -> tuple[Transform, float]:
    """The inverse of a world transform, and its residual in voxels.

    Affine maps are inverted exactly, all else by iteration on ``grid``, which only affine maps do without.

    Raises:
        DivergenceError: the map folds, so that it has no inverse, or the iteration does not converge; ``name`` says which transform.
    """
    if _is_affine(transform):
        return Affine(torch.as_tensor(affine_matrix(transform, Path(name)))).inverse(), 0.0
    assert grid is not None
    affine, u = _split_affine(framed(transform, grid), grid, name)
    folded = metrics.non_diffeomorphic_volume(u, grid)["folded_cells_percent"]
    if folded > 0:
        count = round(folded / 100 * math.prod(n - 1 for n in grid.shape))
        raise DivergenceError(
            f"{name}: {count} cells fold ({folded:.3g} %), so the map has no inverse there; rdmm jacobian shows where:"
            " register again with a stronger regularizer"
        )
    w, residual = invert(u, grid)
    if residual > 0.5:
        raise DivergenceError(f"{name}: cannot be inverted by iteration (residual {residual:.2g} voxels): its gradients are too steep")
    return Placed(composed(affine.inverse(), Dense(w, grid)), grid), residual


def _is_affine(transform: Transform) -> bool:
    return all(isinstance(m, Affine) for m in flat(transform))


def _split_affine(transform: Transform, grid: Grid, name: str) -> tuple[Affine, Tensor]:
    """(A, u) such that T = A ∘ (id + u) at the voxels, where A is the least-squares affine fit to T.

    Raises:
        DivergenceError: A is singular: T takes all voxels to a plane, a line or a point; ``name`` says which transform.
    """
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    ends = transform(x)
    points = torch.cat([x, torch.ones_like(x[:, :1])], 1).flatten(2)[0]
    matrix = torch.eye(grid.ndim + 1, dtype=x.dtype)
    matrix[:-1] = torch.linalg.lstsq(points.T, ends.flatten(2)[0].T).solution.T
    if not is_invertible(matrix.numpy()):
        raise DivergenceError(f"{name}: the map flattens the whole image, so it has no inverse; rdmm jacobian shows where it folds")
    affine = Affine(matrix)
    return affine, affine.inverse()(ends) - x


def points(csv: str, names: list[str], out: str, *, lps: bool, overwrite: bool) -> dict[str, Any]:
    """``rdmm points``: map a list of points and write it. The first transform is applied first."""
    path = check_output(require_ending(out, [".csv"], "a list of points"), overwrite=overwrite)
    transform = io.read_transforms(names)
    given = io.read_points(csv, transform.ndim or 3, lps=lps)
    x = torch.as_tensor(given.points.T[None])
    _warn_outside(transform, x, "points")
    moved = transform(x)[0].numpy().T
    io.write_points(path, replace(given, points=moved))
    return {"points": len(moved), "written": str(path)}


def read_displacement(name: str) -> tuple[torch.Tensor, Grid]:
    """The displacement (1, d, *s) of a warp file, in domain units, and its grid. Raises InputError for any other transform."""
    transform = io.read_transform(name)
    if not isinstance(transform, Placed) or not isinstance(transform.transform, Dense):
        raise InputError(f"{name}: not a warp; give a .nii or .nii.gz file of displacements")
    return transform.transform.displacement, transform.grid


def _read_space(fixed: str | None, moving: str | None) -> Space:
    """The grids of the two images as their files store them; None for an image that is not given.

    Raises:
        InputError: an image cannot be used, or one is 2D and the other 3D.
    """
    space = Space(_read_grid(fixed), _read_grid(moving))
    _require_fit("", None, space, fixed, moving)
    return space


def _require_fit(name: str, transform: Transform | None, space: Space, fixed: str | None, moving: str | None) -> None:
    """Raise InputError if a transform and the images that are given are not all 2D or all 3D."""
    of_images = {path: grid.ndim for path, grid in ((fixed, space.fixed), (moving, space.moving)) if path is not None and grid is not None}
    require_one_dimension({**of_images, name: None if transform is None else transform.ndim})


def _read_grid(image: str | None) -> Grid | None:
    return None if image is None else io.read_grid(image)


def convert(
    source: str, out: str, *, source_form: str | None, form: str | None, fixed: str | None, moving: str | None, overwrite: bool
) -> dict[str, Any]:
    """``rdmm convert``: read a transform (fixed -> moving) in one tool's format and write it in another's."""
    choose_writer(out, form)
    path = check_output(out, overwrite=overwrite)
    space = _read_space(fixed, moving)
    transform = read_transform_as(source, source_form, space)
    _require_fit(source, transform, space, fixed, moving)
    write_transform(path, transform, form, space)
    return {"written": str(path)}


def compose(names: list[str], out: str, *, form: str | None, fixed: str | None, moving: str | None, overwrite: bool) -> dict[str, Any]:
    """``rdmm compose``: write a list of -t arguments as one transform."""
    choose_writer(out, form)
    path = check_output(out, overwrite=overwrite)
    space, transform = _read_space(fixed, moving), io.read_transforms(names)
    _require_fit(" ".join(names), transform, space, fixed, moving)
    write_transform(path, transform, form, space)
    return {"written": str(path)}


def invert_transform(
    source: str, out: str, *, source_form: str | None, form: str | None, fixed: str | None, moving: str | None, overwrite: bool
) -> dict[str, Any]:
    """``rdmm invert``: write the inverse of a transform.

    Affine parts are inverted exactly, warps by iteration on their own grid (or the fixed image's). The inverse is written on the moving
    image's grid if that image is given.

    Raises:
        DivergenceError: the transform folds, so that it has no inverse.
    """
    choose_writer(out, form)
    path = check_output(out, overwrite=overwrite)
    space = _read_space(fixed, moving)
    transform = read_transform_as(source, source_form, space)
    _require_fit(source, transform, space, fixed, moving)
    grid = space.fixed if _is_affine(transform) else choose_grid(transform, space)
    inverse, residual = _invert_in_world(transform, grid, source)
    write_transform(path, inverse, form, Space(space.moving or grid, space.fixed))
    return {"residual_voxels": residual, "written": str(path)}


def jacobian(warp: str, out: str, *, take_log: bool, overwrite: bool) -> dict[str, Any]:
    """``rdmm jacobian``: write the Jacobian determinant of a warp, or its logarithm; return the regularity metrics."""
    path = check_output(require_ending(out, ENDINGS, "an image"), overwrite=overwrite)
    u, grid = read_displacement(warp)
    det = ops.jacobian_determinant(u.double(), grid)[None]
    io.write_image(path, det.clamp_min(1e-3).log() if take_log else det, grid)
    return {**metrics.regularity(u, grid), "written": str(path)}


def evaluate(names: list[str], fixed_labels: str | None, moving_labels: str | None, landmarks: str | None) -> dict[str, Any]:
    """``rdmm evaluate``: metrics of transforms made by any tool, composed: regularity, Dice, landmark error in mm."""
    transform = io.read_transforms(names)
    out: dict[str, Any] = _regularity(transform)
    if not out and isinstance(transform, Affine):  # it has no folds, and without labels and landmarks this is all that can be said
        out["determinant"] = float(torch.linalg.det(transform.matrix.double()))
    if fixed_labels is not None and moving_labels is not None:
        fixed, moving = io.read_labels(fixed_labels), io.read_labels(moving_labels)
        require_one_dimension({fixed_labels: fixed.grid.ndim, moving_labels: moving.grid.ndim, " ".join(names): transform.ndim})
        after = moving.moved_by(framed(transform, fixed.grid), fixed.grid, mode="nearest")
        before = moving.moved_by(framed(Identity(), fixed.grid), fixed.grid, mode="nearest")
        out |= metrics.overlap(after.data, fixed.data, before.data, fixed.grid.voxel)
    if landmarks is not None:
        a, b, _ = io.read_landmarks(landmarks, transform.ndim or 3)
        error = metrics.tre(a, b, transform)
        out["tre_before_mm"] = float(metrics.tre(a, b).mean())
        out |= {"tre_mm": float(error.mean()), "tre_max_mm": float(error.max()), "landmarks": len(a)}
    return out


def _regularity(transform: Transform) -> dict[str, float]:
    """Folds and SDlogJ of all warps of a chain together, on the grid of the first; {} if there is none.

    Affine maps before and after the warps are left out: they do not fold, and they are not part of the deformation.
    """
    maps = flat(transform)
    first = next((k for k, m in enumerate(maps) if not isinstance(m, Affine)), len(maps))
    deformation, _ = split(compose_all(maps[first:]))
    if isinstance(deformation, Identity):
        return {}
    grid = choose_grid(deformation, Space())
    if isinstance(deformation, Placed) and isinstance(deformation.transform, Dense):
        return metrics.regularity(deformation.transform.displacement, grid)
    return metrics.regularity(displacement(framed(deformation, grid), grid, torch.zeros(1, dtype=torch.float64)), grid)
