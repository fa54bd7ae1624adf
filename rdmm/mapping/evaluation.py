"""What can be measured of transforms: Jacobian determinants, folds, Dice of labels, errors of landmarks."""

from __future__ import annotations

import os
from typing import Any

import torch

from rdmm import io, metrics
from rdmm.io.exchange import Given, Image, image_source, name_of
from rdmm.io.files import check_output, require_ending
from rdmm.io.maps import Maps, describe_maps, read_maps
from rdmm.io.nifti import ENDINGS
from rdmm.io.vectors import Space, choose_grid
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid, require_one_dimension
from rdmm.spatial.transform import Affine, Dense, Identity, Placed, Transform, compose_all, displacement, flat, framed, split
from rdmm.types import ConfigError, InputError, option


def read_displacement(warp: Maps) -> tuple[torch.Tensor, Grid]:
    """The displacement (1, d, *s) of a warp, in domain units, and its grid. Raises InputError for any other transform."""
    transform = read_maps(warp)
    if not isinstance(transform, Placed) or not isinstance(transform.transform, Dense):
        raise InputError(f"{describe_maps(warp)}: not a warp; give a .nii or .nii.gz file of displacements")
    return transform.transform.displacement, transform.grid


def jacobian(warp: Maps, out: str | os.PathLike[str] | None = None, *, log: bool = False, overwrite: bool = False) -> Image:
    """The Jacobian determinant of a warp by central differences, or its logarithm. An affine that belongs to the warp is not included.

    Args:
        warp: the file of a warp.
        out: a file to write, too.
        log: the logarithm; determinants below 0.001 are set to 0.001 first.
        overwrite: replace an existing file.
    """
    path = None if out is None else check_output(require_ending(out, ENDINGS, "an image"), overwrite=overwrite)
    u, grid = read_displacement(warp)
    det = ops.jacobian_determinant(u.double(), grid)[None]
    image = Image((det.clamp_min(1e-3).log() if log else det).float(), grid)
    if path is not None:
        image.save(path, overwrite=True)
    return image


def evaluate(
    transforms: Maps,
    fixed_labels: Given | None = None,
    moving_labels: Given | None = None,
    landmarks: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Metrics of transforms made by any tool, composed: folds and SDlogJ; Dice and landmark error (mm), before and after, if given.

    Args:
        transforms: one, or a list, as for ``rdmm.apply``.
        fixed_labels, moving_labels: label maps, both or neither.
        landmarks: CSV of fixed_x..z, moving_x..z in world millimeters (RAS+).

    Raises:
        ConfigError: only one of the two label maps.
        InputError: a file cannot be used, or the dimensions differ.
    """
    if (fixed_labels is None) != (moving_labels is None):
        raise ConfigError(f"give both {option('fixed_labels', '')} and {option('moving_labels', '')}, or neither")
    transform, name = read_maps(transforms), describe_maps(transforms)
    out: dict[str, Any] = _regularity(transform)
    if not out and isinstance(transform, Affine):  # it has no folds, and without labels and landmarks this is all that can be said
        out["determinant"] = float(torch.linalg.det(transform.matrix.double()))
    if fixed_labels is not None and moving_labels is not None:
        names = (name_of(fixed_labels, "fixed_labels"), name_of(moving_labels, "moving_labels"))
        fixed, moving = (
            io.read_labels(image_source(given, argument), name=argument)
            for given, argument in ((fixed_labels, "fixed_labels"), (moving_labels, "moving_labels"))
        )
        require_one_dimension({names[0]: fixed.grid.ndim, names[1]: moving.grid.ndim, name: transform.ndim})
        after = moving.moved_by(framed(transform, fixed.grid), fixed.grid, mode="nearest")
        before = moving.moved_by(framed(Identity(), fixed.grid), fixed.grid, mode="nearest")
        out |= metrics.overlap(after.data, fixed.data, before.data, fixed.grid.voxel)
    if landmarks is not None:
        a, b, _ = io.read_landmarks(landmarks, transform.ndim or 3)
        error = metrics.tre(a, b, transform)
        out["tre_before_mm"] = float(metrics.tre(a, b).mean())
        out |= {"tre_mm": float(error.mean()), "tre_max_mm": float(error.max()), "landmarks": len(a)}
    return out


def regularity(warp: Maps) -> dict[str, Any]:
    """Folds and SDlogJ of a warp, as ``rdmm jacobian`` prints them."""
    return metrics.regularity(*read_displacement(warp))


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
