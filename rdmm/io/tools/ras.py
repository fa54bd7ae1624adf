"""Bare matrices between world millimeters, as greedy, c3d (ITK-SNAP) and NiftyReg write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rdmm.io.tools.start import Start
from rdmm.io.vectors import Space, affine_map, affine_matrix, read_matrix, write_matrix
from rdmm.spatial.transform import Transform


@dataclass(frozen=True)
class RAS:
    """Text of 4x4 numbers (2D: 3x3), fixed -> moving, RAS millimeters. The file does not name its tool, and FLIRT's looks the same."""

    endings = (".txt", ".mat")
    needs_images = False

    def recognises(self, start: Start) -> bool:
        return start.numbers in (9, 16)

    def read(self, path: Path, space: Space) -> Transform:
        n = 3 if Start.of(path).numbers == 9 else 4
        return affine_map(path, read_matrix(path, (n, n)))

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        write_matrix(path, affine_matrix(transform, path))
