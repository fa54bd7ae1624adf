"""The breathing liver: 4D MR with landmarks inside and outside the liver. Other organs slide along its surface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from rdmm import io
from rdmm.data.inputs import Inputs, read_inputs
from rdmm.data.paths import require_folder
from rdmm.data.studies.organ import largest_organ
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image


def hull_mask(points: np.ndarray, grid: Grid, margin: float = 10.0) -> Image:
    """1 within ``margin`` millimeters of the convex hull of points (n, 3), else 0. It replaces a segmentation of the organ."""
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import Delaunay

    world = grid.to_world(grid.identity(torch.zeros(1, dtype=torch.float64)))[0].flatten(1).T.numpy()
    inside = (Delaunay(points).find_simplex(world) >= 0).reshape(grid.shape)
    near = distance_transform_edt(~inside, sampling=grid.voxel) <= margin
    return Image(torch.from_numpy(near.astype(np.float32))[None, None], grid)


@dataclass(frozen=True)
class Livers:
    """``liver_mr``: exhalation (fixed) and another phase of breathing (moving).

    The data have no segmentation of the liver.

    Args:
        region: how the liver is found in each image: ``organ``, by intensities (largest_organ), or ``hull``, the convex hull of its
            landmarks, dilated by ``margin`` millimeters. The hull knows the landmarks that judge the result.
    """

    root: str
    pairs: Sequence[str] = ("19_cyc_1_6", "19_cyc_1_9", "23_cyc_1_4", "23_cyc_5_4")
    region: Literal["organ", "hull"] = "organ"
    margin: float = 10.0

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {f"liver{p.replace('_cyc_', '_')}": partial(self._read, p) for p in self.pairs}

    def _read(self, name: str) -> Inputs:
        files = require_folder(self.root, "liver_mr")
        subject, _, phase = name.partition("_")
        fixed = io.read_image(files / f"subject_{subject}_exhale.nii.gz")
        moving = io.read_image(files / f"subject_{subject}_{phase}.nii.gz")
        landmarks = files / f"subject_{subject}_exhale_{phase}_landmarks.csv"
        fixed_points, moving_points, regions = io.read_landmarks(landmarks)
        is_liver = np.array([r == "liver" for r in regions])
        return read_inputs(
            fixed,
            moving,
            landmarks=landmarks,
            fixed_regions=self._region(fixed, fixed_points[is_liver]),
            regions=self._region(moving, moving_points[is_liver]),
        )

    def _region(self, image: Image, points: np.ndarray) -> Image:
        return largest_organ(image) if self.region == "organ" else hull_mask(points, image.grid, self.margin)
