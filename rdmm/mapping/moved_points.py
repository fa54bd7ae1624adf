"""Points, mapped by transforms: fixed -> moving."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import torch

from rdmm import io
from rdmm.io.files import check_output, require_ending
from rdmm.io.in_memory import point_array
from rdmm.io.maps import Maps, read_maps
from rdmm.io.points import POINT_ENDINGS
from rdmm.mapping.transforms import warn_outside
from rdmm.spatial.transform import Transform
from rdmm.types import ConfigError, option


def points(
    points: str | os.PathLike[str] | np.ndarray,
    transforms: Maps,
    out: str | os.PathLike[str] | None = None,
    *,
    lps: bool = False,
    overwrite: bool = False,
) -> np.ndarray:
    """Map points of the fixed image to the moving image.

    Args:
        points: a file of points, of a mesh or of streamlines (docs/formats.md), or an array (n, d) of world millimeters.
        transforms: one, or a list, of which the first is applied first; as for ``rdmm.apply``.
        out: a file to write, too, in the format of its name; only if ``points`` is a file, whose columns, cells and data it keeps.
        lps: the points, and the result, are in LPS+ as ANTs and ITK write them, not in RAS+.
        overwrite: replace an existing file.

    Returns:
        the mapped points (n, d), world millimeters.

    Raises:
        InputError: the points are of another dimension than the transform, or not finite numbers.
        ConfigError: ``out`` for an array.
        OutputError: the file exists, or a mapped point is not finite.
    """
    path = None if out is None else check_output(require_ending(out, POINT_ENDINGS, "a list of points or a mesh"), overwrite=overwrite)
    transform = read_maps(transforms)
    if not isinstance(points, str | os.PathLike):
        if path is not None:
            raise ConfigError(f"{option('out', str(out))}: only points of a file are written to a file; use numpy.savetxt")
        given = point_array(points, transform.ndim, "points")
        flip = np.array([-1.0, -1.0, 1.0])[: given.shape[1]] if lps else np.ones(given.shape[1])
        return map_points(given * flip, transform) * flip
    read = io.read_points(points, transform.ndim or 3, lps=lps)
    moved = map_points(read.points, transform)
    if path is not None:
        io.write_points(path, replace(read, points=moved))
    return moved * (np.array([-1.0, -1.0, 1.0])[: moved.shape[1]] if lps else 1.0)


def map_points(points: np.ndarray, transform: Transform) -> np.ndarray:
    """Points (n, d) of world millimeters under a transform; warns of those outside a warp's grid."""
    x = torch.as_tensor(np.ascontiguousarray(points.T[None]))
    warn_outside(transform, x, "points")
    return transform(x)[0].numpy().T
