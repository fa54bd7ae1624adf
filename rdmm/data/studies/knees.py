"""Knees of the Osteoarthritis Initiative (OAI): images are made from label maps of bones and cartilage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rdmm import io
from rdmm.data.inputs import Inputs, read_inputs
from rdmm.data.paths import require_folder
from rdmm.data.synthetic.label_images import intensities_of
from rdmm.spatial.image import Image

LABEL_INTENSITIES = (0.0, 0.5, 1.0, 0.4, 0.9, 0.3, 0.8, 0.5, 0.4, 0.3)
"""Intensities of the background, femur, its cartilage, tibia, its cartilage, patella, its cartilage, and lesions of the three bones."""

KNEE_PAIRS = ("9055361_00m:9055361_96m", "9275309_00m:9275309_96m", "9055361_00m:9275309_00m")


def subsample_labels(labels: Image, steps: Sequence[int]) -> Image:
    """Keep every n-th voxel along each axis; ``steps`` has one n per axis."""
    x, y, z = steps
    return Image(labels.data[..., ::x, ::y, ::z], labels.grid.strided(steps))


@dataclass(frozen=True)
class Knees:
    """``knee_mri``: one knee eight years apart, or two knees. Labels of bones are 1, 3, 5, of cartilage 2, 4, 6.

    The knees may lie at different world positions, so start with an affine step that aligns their centers.

    Args:
        root: folder that contains ``knee_mri``.
        pairs: names FIXED:MOVING.
        steps: keep every n-th voxel along each axis, of .7 x .365 x .365 mm.
    """

    root: str
    pairs: Sequence[str] = KNEE_PAIRS
    steps: Sequence[int] = (2, 3, 3)

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        return {p.replace(":", "-"): partial(self._read, p) for p in self.pairs}

    def _read(self, pair: str) -> Inputs:
        files = require_folder(self.root, "knee_mri")
        labels = [subsample_labels(io.read_labels(files / f"oai_{name}_labels.nii.gz"), self.steps) for name in pair.split(":")]
        images = [intensities_of(x, LABEL_INTENSITIES) for x in labels]
        return read_inputs(*images, fixed_labels=labels[0], moving_labels=labels[1], labels=range(1, 7), require_overlap=False)
