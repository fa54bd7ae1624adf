"""Lungs at two phases of breathing: CT of a right lung, and masks of both lungs with landmarks (DIR-Lab COPDgene)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rdmm import io
from rdmm.data.inputs import Inputs, read_inputs
from rdmm.data.paths import require_folder
from rdmm.spatial.image import Image


def coarsen(image: Image, voxel: float) -> Image:
    """Resample to voxels of about ``voxel`` millimeters. Axes that are coarser already are kept."""
    shape = [round((n - 1) * v / max(voxel, v)) + 1 for n, v in zip(image.grid.shape, image.grid.voxel, strict=True)]
    return image.resampled(image.grid.resized(shape))


@dataclass(frozen=True)
class RightLung:
    """``lung_ct/right_lung``: CT at baseline (fixed) and follow-up. The lung masks are used as labels and regions."""

    root: str
    voxel: float = 2.0

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {"right_lung": self._read}

    def _read(self) -> Inputs:
        files = require_folder(self.root, "lung_ct/right_lung")
        fixed = coarsen(io.read_image(files / "baseline.nii.gz"), self.voxel)
        moving = coarsen(io.read_image(files / "followup.nii.gz"), self.voxel)
        a, b = io.read_labels(files / "baseline_mask.nii.gz"), io.read_labels(files / "followup_mask.nii.gz")
        return read_inputs(fixed, moving, fixed_labels=a, moving_labels=b, fixed_regions=a, regions=b)


@dataclass(frozen=True)
class LungMasks:
    """``lung_ct/copd_masks``: masks at exhalation (fixed) and inhalation, used as images, labels and regions; 300 landmarks per case."""

    root: str
    numbers: Sequence[int] = (1, 2, 3, 4, 5, 6)
    voxel: float = 3.0

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {f"copd{i:02d}": partial(self._read, i) for i in self.numbers}

    def _read(self, number: int) -> Inputs:
        files = require_folder(self.root, "lung_ct/copd_masks")
        case = f"case_{number:02d}"
        a, b = io.read_labels(files / f"{case}_exhale_mask.nii.gz"), io.read_labels(files / f"{case}_inhale_mask.nii.gz")
        fixed, moving = (coarsen(x.to_float32(), self.voxel) for x in (a, b))
        landmarks = files / f"{case}_landmarks.csv"
        return read_inputs(fixed, moving, fixed_labels=a, moving_labels=b, fixed_regions=a, regions=b, landmarks=landmarks)
