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


def halve(image: Image, labels: Image) -> tuple[Image, Image]:
    """Halve the resolution: the image is averaged over 2 x 2 x 2 voxels, the labels are subsampled."""
    data = torch.nn.functional.avg_pool3d(image.data, 2)
    return Image(data, image.grid.pooled((2, 2, 2))), Image(labels.data[..., ::2, ::2, ::2], image.grid.strided((2, 2, 2)))


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
        read = [
            (io.read_image(files / f"brain_{s}_t1.nii.gz"), io.read_labels(files / f"brain_{s}_labels.nii.gz")) for s in pair.split(":")
        ]
        (fixed, a), (moving, b) = (halve(*x) for x in read) if self.half else read
        return read_inputs(fixed, moving, fixed_labels=a, moving_labels=b, labels=STRUCTURES)


@dataclass(frozen=True)
class BrainSlices:
    """``slices_2d/oasis_trt20_labelled``: labeled slices. ``pairs`` are numbers FIXED:MOVING."""

    root: str
    pairs: Sequence[str] = ("01:02", "03:04", "05:06", "07:08", "09:10", "11:12", "13:14")

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {f"slice_{p.replace(':', '-')}": partial(self._read, p) for p in self.pairs}

    def _read(self, pair: str) -> Inputs:
        files = require_folder(self.root, "slices_2d/oasis_trt20_labelled")
        (fixed, a), (moving, b) = ((files / f"{n}_t1.nii.gz", files / f"{n}_labels.nii.gz") for n in pair.split(":"))
        return read_inputs(fixed, moving, fixed_labels=a, moving_labels=b)
