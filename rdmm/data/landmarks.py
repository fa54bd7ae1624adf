"""Corresponding points of the two images: landmarks in world millimeters, keypoints in voxels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmm import io
from rdmm.spatial.grid import Grid
from rdmm.types import InputError, repr_with_shapes


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Corresponding points (n, d) in world millimeters (RAS+), and the name of each one's region ('' for none)."""

    fixed: np.ndarray
    moving: np.ndarray
    regions: Sequence[str]

    __repr__ = repr_with_shapes

    def by_region(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Fixed and moving points of each named region."""
        names = np.asarray(self.regions)
        return {str(n): (self.fixed[names == n], self.moving[names == n]) for n in np.unique(names) if n}


def read_points(
    landmarks: str | os.PathLike[str] | Sequence[Any] | None, keypoints: Sequence[str | os.PathLike[str]], stored: tuple[Grid, Grid]
) -> Landmarks | None:
    """Landmarks from a CSV, or keypoints of both images; None if there are neither."""
    if keypoints and (landmarks is not None or len(keypoints) == 1):
        raise InputError(f"{os.fspath(keypoints[0])}: give keypoints of both images, or landmarks, but not both")
    if keypoints:
        return _read_keypoints(keypoints, stored)
    if landmarks is None:
        return None
    return Landmarks(*io.read_landmarks(landmarks, stored[0].ndim, stored))


def _read_keypoints(paths: Sequence[str | os.PathLike[str]], grids: Sequence[Grid]) -> Landmarks:
    """Corresponding keypoints of the fixed and the moving image. The files give voxel indices of the image files."""
    voxels = [io.read_keypoints(p, grid.ndim, grid.shape) for p, grid in zip(paths, grids, strict=True)]
    if len(voxels[0]) != len(voxels[1]):
        raise InputError(
            f"{os.fspath(paths[0])} holds {len(voxels[0])} keypoints but {os.fspath(paths[1])} holds {len(voxels[1])}; they must correspond"
        )
    fixed, moving = (grid.voxel_to_world(x) for x, grid in zip(voxels, grids, strict=True))
    return Landmarks(fixed, moving, [""] * len(fixed))
