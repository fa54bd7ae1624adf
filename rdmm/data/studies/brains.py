"""Brains with labels: T1 volumes with FreeSurfer's labels, and slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from rdmm import io
from rdmm.data.inputs import Inputs, read_inputs
from rdmm.data.paths import require_folder
from rdmm.spatial.image import Image

STRUCTURES = (2, 3, 4, 7, 8, 10, 11, 12, 13, 16, 17, 18, 28, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 60)
"""FreeSurfer labels that Dice is computed of."""


def halve_image(image: Image) -> Image:
    """Halve the resolution of a volume: means of 2 x 2 x 2 voxels."""
    return Image(torch.nn.functional.avg_pool3d(image.data, 2), image.grid.pooled((2, 2, 2)))


def halve_labels(labels: Image) -> Image:
    """Halve the resolution of a label map: keep every second voxel along each axis."""
    return Image(labels.data[..., ::2, ::2, ::2], labels.grid.strided((2, 2, 2)))


@dataclass(frozen=True)
class Brains:
    """``brain_mri``: volumes with labels.

    Args:
        root: folder that contains ``brain_mri``.
        pairs: names FIXED:MOVING.
        half: whether to use 2 mm instead of 1 mm.
    """

    root: str
    pairs: Sequence[str] = ("a:b",)
    half: bool = True

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {f"brain_{p.replace(':', '-')}": partial(self._read, p) for p in self.pairs}

    def _read(self, pair: str) -> Inputs:
        files = require_folder(self.root, "brain_mri")
        names = pair.split(":")
        images = [io.read_image(files / f"brain_{name}_t1.nii.gz") for name in names]
        labels = [io.read_labels(files / f"brain_{name}_labels.nii.gz") for name in names]
        if self.half:
            images, labels = [halve_image(x) for x in images], [halve_labels(x) for x in labels]
        return read_inputs(*images, fixed_labels=labels[0], moving_labels=labels[1], labels=STRUCTURES)


@dataclass(frozen=True)
class BrainSlices:
    """``slices_2d/oasis_trt20_labelled``: labeled slices. ``pairs`` are numbers FIXED:MOVING."""

    root: str
    pairs: Sequence[str] = ("01:02", "03:04", "05:06", "07:08", "09:10", "11:12", "13:14")

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {f"slice_{p.replace(':', '-')}": partial(self._read, p) for p in self.pairs}

    def _read(self, pair: str) -> Inputs:
        files = require_folder(self.root, "slices_2d/oasis_trt20_labelled")
        names = pair.split(":")
        images = [files / f"{name}_t1.nii.gz" for name in names]
        labels = [files / f"{name}_labels.nii.gz" for name in names]
        return read_inputs(*images, fixed_labels=labels[0], moving_labels=labels[1])
