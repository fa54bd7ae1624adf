"""What can be measured of transforms: Jacobian determinants, folds, Dice of labels, errors of landmarks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch

from rdmm import io, metrics
from rdmm.io.exchange import Given, Image, image_source, name_of, read_given_grid
from rdmm.io.formats.choice import check_image_output
from rdmm.io.maps import Maps, describe_maps, list_maps, read_inverse_maps, read_maps
from rdmm.io.transforms import expand, is_run, read_transforms
from rdmm.io.vectors import Space, choose_grid
from rdmm.spatial import image as spatial
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid, require_one_dimension
from rdmm.spatial.transform import Affine, Dense, Identity, Placed, Transform, compose_all, displacement, flat, framed, split
from rdmm.types import ConfigError, option

log = logging.getLogger(__name__)

Found = tuple[metrics.Subject, Grid]
"""Where the subject is, and the grid on which that is given."""


def jacobian(
    transforms: Maps,
    out: str | os.PathLike[str] | None = None,
    reference: Given | Grid | None = None,
    *,
    with_affine: bool = False,
    log: bool = False,
    overwrite: bool = False,
) -> Image:
    """The Jacobian determinant of a map, or its logarithm, by central differences: how much larger the moving image is at each voxel.

    Args:
        transforms: one, or a list, as for ``rdmm.apply``.
        out: a file to write, too.
        reference: the image, or Grid, whose voxels the result has; None: those of the first warp.
        with_affine: with the affine maps before and after the warps; otherwise of the deformation alone, as ANTs computes it of a warp.
        log: the logarithm; determinants below 0.001 are set to 0.001 first.
        overwrite: replace an existing file.

    Raises:
        InputError: a file cannot be used.
        ConfigError: affine maps alone, without ``with_affine`` or ``reference``.
        OutputError: the file exists, or cannot be written.
    """
    return measured_jacobian(transforms, out, reference, with_affine=with_affine, log=log, overwrite=overwrite)[0]


def measured_jacobian(
    transforms: Maps,
    out: str | os.PathLike[str] | None,
    reference: Given | Grid | None,
    *,
    with_affine: bool,
    log: bool,
    overwrite: bool,
) -> tuple[Image, dict[str, Any]]:
    """``jacobian``; and what became of the affine maps, with the folds and SDlogJ of what was measured."""
    path = None if out is None else check_image_output(out, overwrite=overwrite)
    whole, name = read_maps(transforms), describe_maps(transforms)
    _, inner = _without_affine(whole)
    removed = len(flat(inner)) < len(flat(whole))
    given = None if reference is None else read_given_grid(reference, "reference")
    require_one_dimension({name: whole.ndim, name_of(reference, "reference"): None if given is None else given.ndim})
    if isinstance(inner, Identity) and not (with_affine and given):
        raise ConfigError(
            f"{name}: only affine maps, without a warp; pass {option('with_affine')} and {option('reference', 'IMAGE')}"
            " for their determinant on the grid of an image"
        )
    transform = whole if with_affine else inner
    grid = choose_grid(transform, Space(given))
    u = _displacement(transform, grid)
    det = ops.jacobian_determinant(u.double(), grid)[None]
    image = Image((det.clamp_min(1e-3).log() if log else det).float(), grid)
    if path is not None:
        image.save(path, overwrite=True)
    state = "none in the transforms" if not removed else "included" if with_affine else "not included"
    return image, {"affine": state, **metrics.regularity(u, grid)}


def _displacement(transform: Transform, grid: Grid) -> torch.Tensor:
    """The displacement (1, d, *s) of a map of world millimeters on a grid, in domain units."""
    if isinstance(transform, Placed) and isinstance(transform.transform, Dense) and transform.grid == grid:
        return transform.transform.displacement
    return displacement(framed(transform, grid), grid, torch.zeros(1, dtype=torch.float64))


def _without_affine(transform: Transform) -> tuple[Transform, Transform]:
    """The inverse of the affine maps before the warps of a chain, and the chain without them and without those after its warps: affine maps
    do not fold, and they are not part of the deformation."""
    maps = flat(transform)
    before = list(takewhile(lambda m: isinstance(m, Affine), maps))
    back = compose_all(m.inverse() for m in reversed(before) if isinstance(m, Affine))
    return back, split(compose_all(maps[len(before) :]))[0]


def evaluate(
    transforms: Maps,
    fixed_labels: Given | None = None,
    moving_labels: Given | None = None,
    landmarks: str | os.PathLike[str] | Sequence[Any] | None = None,
    fixed: Given | None = None,
    fixed_mask: Given | None = None,
) -> dict[str, Any]:
    """Metrics of transforms made by any tool, composed: folds and SDlogJ; Dice and landmark error (mm), before and after, if given.

    SDlogJ inside the subject (``sd_log_jacobian_subject``) is that in ``fixed_mask``, else that in ``fixed_labels``, else that in the
    foreground of ``fixed`` (``rdmm.metrics.find_subject``); ``subject`` says in which. Without these three there is only that of the whole
    volume. The error of the inverse (``inverse_consistency_mm``) is that of a whole run or a finished registration, which have their own.

    Args:
        transforms: one, or a list, as for ``rdmm.apply``.
        fixed_labels, moving_labels: label maps, both or neither.
        landmarks: CSV of fixed_x..z, moving_x..z in world millimeters (RAS+), or two arrays: fixed and moving points (n, d).
        fixed: the fixed image.
        fixed_mask: an image that is above 0 in the subject.

    Raises:
        ConfigError: only one of the two label maps.
        InputError: a file cannot be used, or the dimensions differ.
    """
    if (fixed_labels is None) != (moving_labels is None):
        raise ConfigError(f"give both {option('fixed_labels', '')} and {option('moving_labels', '')}, or neither")
    transform, name = read_maps(transforms), describe_maps(transforms)
    subject = _read_subject(transform, name, fixed_mask=fixed_mask, fixed_labels=fixed_labels, fixed=fixed)
    out = _regularity(transform, subject) | _inverse_errors(transforms, transform, subject)
    if not out and isinstance(transform, Affine):  # it has no folds, and without labels and landmarks this is all that can be said
        out["determinant"] = float(torch.linalg.det(transform.matrix.double()))
    if fixed_labels is not None and moving_labels is not None:
        names = (name_of(fixed_labels, "fixed_labels"), name_of(moving_labels, "moving_labels"))
        target, moving = (
            io.read_labels(image_source(given, argument), name=argument)
            for given, argument in ((fixed_labels, "fixed_labels"), (moving_labels, "moving_labels"))
        )
        require_one_dimension({names[0]: target.grid.ndim, names[1]: moving.grid.ndim, name: transform.ndim})
        after = moving.moved_by(framed(transform, target.grid), target.grid, mode="nearest")
        before = moving.moved_by(framed(Identity(), target.grid), target.grid, mode="nearest")
        out |= metrics.overlap(after.data, target.data, before.data, target.grid.voxel)
    if landmarks is not None:
        a, b, _ = io.read_landmarks(landmarks, transform.ndim or 3)
        error = metrics.tre(a, b, transform)
        out["tre_before_mm"] = float(metrics.tre(a, b).mean())
        out |= {"tre_mm": float(error.mean()), "tre_max_mm": float(error.max()), "landmarks": len(a)}
    return out


def _regularity(transform: Transform, subject: Found | None) -> dict[str, Any]:
    """Folds and SDlogJ of all warps of a chain together, on the grid of the first, without affine maps around them; {} without warps.

    Args:
        subject: where the subject is, and on which grid. Affine maps before the warps move it along.
    """
    back, deformation = _without_affine(transform)
    if isinstance(deformation, Identity):
        return {}
    grid = choose_grid(deformation, Space())
    there = None if subject is None else _onto(subject, back, grid)
    if there is not None and not bool(there.inside.any()):
        log.warning("the %s of the fixed image lies outside the warp: SDlogJ inside the subject cannot be measured", there.source)
    return metrics.regularity(_displacement(deformation, grid), grid, there)


def _inverse_errors(given: Maps, transform: Transform, subject: Found | None) -> dict[str, float]:
    """Errors (mm) of the inverse that a whole run, or a finished registration, has of its own; {} for other ``given``, or without warps.

    Args:
        transform: the map that ``given`` stands for.
        subject: where the subject is, and on which grid.
    """
    own, *others = list_maps(given) or [None]
    _, deformation = _without_affine(transform)
    inverse = None if others or isinstance(deformation, Identity) else _own_inverse(own)
    if inverse is None:
        return {}
    grid = choose_grid(deformation, Space())
    there = None if subject is None else _onto(subject, Identity(), grid)
    return metrics.inverse_errors(framed(transform, grid), framed(inverse, grid), grid, there)


def _own_inverse(given: Any) -> Transform | None:
    """The inverse in the files of a run, or of a finished registration; None if warps would have to be inverted first."""
    if getattr(given, "has_inverse", False):
        return read_inverse_maps(given)
    if not is_run(given) or os.fspath(given).startswith("["):
        return None
    parts = expand(f"[{os.fspath(given)},1]")
    has_all = all(part.endswith(".mat,1]") for part in parts if part.startswith("["))
    return read_transforms(parts) if has_all else None


def _onto(subject: Found, transform: Transform, grid: Grid) -> metrics.Subject:
    """The subject, moved by a map of world millimeters, on another grid."""
    found, own = subject
    return metrics.Subject(spatial.Image(found.inside, own).moved_by(framed(transform, grid), grid, mode="nearest").data, found.source)


def _read_subject(transform: Transform, name: str, **given: Given | None) -> Found | None:
    """Where the subject is, and on which grid, by the first of the images that is ``given``; None without any.

    Args:
        name: that of the transform, for messages.
        given: fixed_mask, fixed_labels and fixed.
    """
    argument, chosen = next(((k, v) for k, v in given.items() if v is not None), ("", None))
    if chosen is None:
        return None
    read = io.read_labels if argument == "fixed_labels" else io.read_image
    image = read(image_source(chosen, argument), name=argument)
    require_one_dimension({name_of(chosen, argument): image.grid.ndim, name: transform.ndim})
    if argument == "fixed_mask":
        image = replace(image, mask=(image.data[:, :1] > 0).float())
    return metrics.find_subject(image, image if argument == "fixed_labels" else None, by_mask=image.mask is not None), image.grid
