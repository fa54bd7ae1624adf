"""Commands on transforms, from files to files: apply, points, invert, convert, compose, jacobian, evaluate (``rdmm.mapping``)."""

from __future__ import annotations

from typing import Any

from rdmm import mapping
from rdmm.mapping.evaluation import measured_jacobian
from rdmm.mapping.transforms import invert_and_measure
from rdmm.runtime.warnings import collect_warnings
from rdmm.types import ConfigError


def apply(image: str, names: list[str], reference: str, out: str, **options: Any) -> dict[str, Any]:
    """``rdmm apply``: resample an image, or a label map, and write it."""
    with collect_warnings() as warnings:
        moved = mapping.apply(image, names, reference, out, **options)
    return {"type": str(moved.data.dtype).removeprefix("torch."), "warnings": list(dict.fromkeys(warnings)), "written": out}


def points(file: str, names: list[str], out: str, *, lps: bool, overwrite: bool) -> dict[str, Any]:
    """``rdmm points``: map points, or the vertices of a mesh or of streamlines, and write them."""
    return {"points": len(mapping.points(file, names, out, lps=lps, overwrite=overwrite)), "written": out}


def convert(
    source: str, out: str, *, source_form: str | None, form: str | None, fixed: str | None, moving: str | None, overwrite: bool
) -> dict[str, Any]:
    """``rdmm convert``: read a transform (fixed -> moving) in one tool's format and write it in another's."""
    mapping.convert(source, out, from_=source_form, to=form, fixed=fixed, moving=moving, overwrite=overwrite)
    return {"written": out}


def compose(names: list[str], out: str, *, form: str | None, fixed: str | None, moving: str | None, overwrite: bool) -> dict[str, Any]:
    """``rdmm compose``: write a list of -t arguments as one transform."""
    mapping.compose(names, out, to=form, fixed=fixed, moving=moving, overwrite=overwrite)
    return {"written": out}


def invert_transform(
    source: str, out: str, *, source_form: str | None, form: str | None, fixed: str | None, moving: str | None, overwrite: bool
) -> dict[str, Any]:
    """``rdmm invert``: write the inverse of a transform."""
    residual = invert_and_measure(source, out, source_form, form, fixed, moving, overwrite=overwrite)[1]
    return {"residual_voxels": residual, "written": out}


def jacobian(
    warp: str | None, names: list[str], out: str, reference: str | None, *, with_affine: bool, take_log: bool, overwrite: bool
) -> dict[str, Any]:
    """``rdmm jacobian``: write the Jacobian determinant of a chain of transforms, or its logarithm; return the regularity metrics."""
    if (warp is None) == (not names):
        raise ConfigError("give the transforms once: as WARP, or with -t, of which there may be several")
    maps = names if warp is None else [warp]
    return {**measured_jacobian(maps, out, reference, with_affine=with_affine, log=take_log, overwrite=overwrite)[1], "written": out}


def evaluate(
    names: list[str], fixed_labels: str | None = None, moving_labels: str | None = None, landmarks: str | None = None, **more: str | None
) -> dict[str, Any]:
    """``rdmm evaluate``: metrics of transforms made by any tool, composed: regularity, Dice, landmark error in mm."""
    return mapping.evaluate(names, fixed_labels, moving_labels, landmarks, **more)
