"""FreeSurfer's linear transforms (.lta)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdmm.io.files import require_file
from rdmm.io.tools.start import Start
from rdmm.io.vectors import Space, affine_map
from rdmm.spatial.transform import Transform
from rdmm.types import InputError

VOXELS, RAS = 0, 1
"""Types of .lta: the matrix maps voxel indices, or RAS millimeters. There are others, which are refused."""

Fields = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FreeSurfer:
    """Linear transforms .lta: from the source (moving) to the destination (fixed), in voxels or RAS millimeters."""

    endings = ()
    needs_images = False

    def recognises(self, start: Start) -> bool:
        return re.search(r"^\s*nxforms\s*=", start.text, re.MULTILINE) is not None

    def read(self, path: Path, space: Space) -> Transform:
        try:
            lines = [line.partition("#")[0].strip() for line in require_file(path).read_text(encoding="utf-8-sig").splitlines()]
            head, source, target = _split_sections([line for line in lines if line])
            kind, count = int(_field(head, "type", 1)[0]), int(_field(head, "nxforms", 1)[0])
            if count != 1 or kind not in (VOXELS, RAS):
                raise InputError(
                    f"{path}: {count} transforms of type {kind}; one of type 0 (voxels) or 1 (RAS) can be read:"
                    " convert it with lta_convert --outlta"
                )
            first = head.index("1 4 4") + 1
            matrix = np.array([line.split() for line in head[first : first + 4]], dtype=np.float64).reshape(4, 4)
            if kind == VOXELS:
                matrix = _voxel_to_world(target) @ matrix @ np.linalg.inv(_voxel_to_world(source))
        except (ValueError, UnicodeDecodeError, np.linalg.LinAlgError) as error:
            raise InputError(f"{path}: not a transform of FreeSurfer ({error})") from error
        return affine_map(path, np.linalg.inv(affine_map(path, matrix).matrix.numpy()))


def _split_sections(lines: list[str]) -> tuple[list[str], list[str], list[str]]:
    """The lines of the transform itself, of its source volume and of its destination volume."""
    source, target = lines.index("src volume info"), lines.index("dst volume info")
    return lines[:source], lines[source + 1 : target], lines[target + 1 :]


def _field(lines: list[str], name: str, count: int) -> np.ndarray:
    """The ``count`` numbers of the line ``name = numbers``."""
    values = [line.partition("=")[2].split() for line in lines if line.partition("=")[0].strip() == name]
    if len(values) != 1 or len(values[0]) != count:
        raise ValueError(f"'{name} =' with {count} numbers is expected once in its section")
    return np.array(values[0], dtype=np.float64)


def _voxel_to_world(lines: list[str]) -> np.ndarray:
    """(4, 4) matrix from voxel indices to RAS millimeters of a volume. The file states the place of the voxel in the middle."""
    if _field(lines, "valid", 1)[0] != 1:
        raise ValueError("a volume is not valid, so that its voxels have no place")
    out = np.eye(4)
    axes = np.stack([_field(lines, f"{axis}ras", 3) for axis in "xyz"], 1)
    out[:3, :3] = axes * _field(lines, "voxelsize", 3)
    out[:3, 3] = _field(lines, "cras", 3) - out[:3, :3] @ _field(lines, "volume", 3) / 2
    return out
