"""Shapes: pairs of mesh files, outlines of two amoebas with landmarks, cartilage of two knees as points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from rdmm import io
from rdmm.data.inputs import ShapeInputs, read_shapes
from rdmm.data.paths import require_folder
from rdmm.spatial.measure import Measure, voxels
from rdmm.spatial.pair import Pair
from rdmm.types import InputError


@dataclass(frozen=True)
class Meshes:
    """Pairs of .vtk or .ply files.

    Args:
        root: folder of the files.
        pairs: file names [fixed, moving] by the name of the case.
        count: number of points to which each shape is reduced (Measure.thinned); None: keep all.
        features: name of the point data that go along as features; None: none.
    """

    settings: ClassVar[str] = "shapes"
    root: str
    pairs: Mapping[str, list[str]]
    count: int | None = None
    features: str | None = None

    def cases(self) -> dict[str, Callable[[], ShapeInputs]]:
        return {name: partial(self._read, *files) for name, files in self.pairs.items()}

    def _read(self, fixed: str, moving: str) -> ShapeInputs:
        files = require_folder(self.root)
        inputs = read_shapes(str(files / fixed), str(files / moving), features=self.features)
        if self.count is None:
            return inputs
        pair = Pair(inputs.pair.fixed.thinned(self.count), inputs.pair.moving.thinned(self.count))
        return ShapeInputs(pair, inputs.frame, files=inputs.files)


@dataclass(frozen=True)
class Amoebas:
    """``shapes/amoebas``: outlines of two pictures. 1000 pixels have length 1, and y points upwards. The first picture is moving.

    The landmarks are the tips of the three arms and the hole in the foot, found by eye.
    """

    settings: ClassVar[str] = "shapes"
    root: str
    points: int = 700

    MOVING: ClassVar[list[list[float]]] = [[60, 515], [640, 140], [540, 835], [500, 795]]
    FIXED: ClassVar[list[list[float]]] = [[265, 785], [750, 370], [945, 725], [900, 755]]

    def cases(self) -> dict[str, Callable[[], ShapeInputs]]:
        return {"amoeba": self._read}

    def _read(self) -> ShapeInputs:
        files = require_folder(self.root, "shapes/amoebas")
        moving = trace_outline(str(files / "amoeba_1.png"), self.points)
        fixed = trace_outline(str(files / "amoeba_2.png"), self.points)
        inputs = read_shapes(fixed, moving)
        return ShapeInputs(inputs.pair, inputs.frame, (self._to_plane(self.FIXED), self._to_plane(self.MOVING)))

    @staticmethod
    def _to_plane(pixels: list[list[float]]) -> np.ndarray:
        """Points (n, 2) of the plane, from pixels (column, row) of a picture."""
        return np.array([[x / 1000, 1 - y / 1000] for x, y in pixels])


def trace_outline(path: str, count: int) -> Measure:
    """The outlines of the dark areas of a picture, as about ``count`` segments. The longer edge has length 1, and y points upwards."""
    from contourpy import contour_generator

    dark = 1 - _read_brightness(path)
    lines = [np.asarray(line) for line in contour_generator(z=np.pad(dark, 1)[::-1]).lines(0.5)]
    lengths = [float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum()) for line in lines]
    points, cells, start = [], [], 0
    for line, length in zip(lines, lengths, strict=True):
        n = round(count * length / sum(lengths))
        if n < 3:
            continue
        along = np.concatenate([[0], np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()])
        at = np.arange(n) / n * along[-1]
        points.append(np.stack([np.interp(at, along, line[:, k]) for k in range(2)], 1))
        index = np.arange(n)
        cells.append(start + np.stack([index, (index + 1) % n], 1))
        start += n
    if not points:
        raise InputError(f"{path}: the picture has no dark area; give a picture of dark shapes on a bright background")
    x = (np.concatenate(points) - 1) / (max(dark.shape) - 1)
    return Measure(torch.as_tensor(x.T[None].copy(), dtype=torch.float32), cells=torch.as_tensor(np.concatenate(cells)))


def _read_brightness(path: str) -> np.ndarray:
    """Gray values (rows, columns) of a picture in [0, 1]: the mean of its colors. The first row is the top."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(path) as picture:
            if picture.mode == "1":
                return np.asarray(picture, np.float32)
            if picture.mode.startswith("I"):  # 16 bits
                return np.divide(np.asarray(picture), 65535, dtype=np.float32)
            if picture.mode == "L":
                return np.divide(np.asarray(picture), 255, dtype=np.float32)
            return np.divide(np.asarray(picture.convert("RGB")), 255, dtype=np.float32).mean(-1)
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: not a picture ({error})") from error


@dataclass(frozen=True)
class KneeVoxels:
    """``knee_mri/oai_cartilage_a`` and ``_b``: the voxels of a label as points, with the same center of mass; b is fixed.

    Args:
        label: 1 for femoral, 2 for tibial cartilage.
        step: use every n-th voxel.
    """

    settings: ClassVar[str] = "shapes"
    root: str
    label: int = 1
    step: int = 3

    def cases(self) -> dict[str, Callable[[], ShapeInputs]]:
        return {"knee": self._read}

    def _read(self) -> ShapeInputs:
        return read_shapes(self._read_voxels("b"), self._read_voxels("a"))

    def _read_voxels(self, name: str) -> Measure:
        labels = io.read_labels(require_folder(self.root, "knee_mri") / f"oai_cartilage_{name}.nii.gz")
        points = voxels((labels.data == self.label).float(), labels.grid).points
        return Measure((points - points.mean(2, keepdim=True))[:, :, :: self.step].contiguous())
