"""MINC's linear transforms (.xfm)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdmm.io.files import require_file
from rdmm.io.tools.start import Start
from rdmm.io.vectors import Space, affine_map
from rdmm.spatial.transform import Transform
from rdmm.types import InputError

HEADING = "MNI Transform File"


@dataclass(frozen=True)
class MINC:
    """Linear transforms .xfm of MINC and FreeSurfer: from the source (moving) to the target (fixed), RAS millimeters."""

    endings = ()
    needs_images = False

    def recognises(self, start: Start) -> bool:
        return start.text.startswith(HEADING)

    def read(self, path: Path, space: Space) -> Transform:
        """Concatenated transforms are applied in the order of the file."""
        try:
            lines = require_file(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not a transform of MINC ({error})") from error
        text = "\n".join(line.partition("%")[0] for line in lines).removeprefix(HEADING)
        *statements, rest = (part.strip() for part in text.split(";"))
        matrix, pending = np.eye(4), False
        for statement in statements:
            key, _, value = (part.strip() for part in statement.partition("="))
            if key == "Transform_Type":
                if pending or value != "Linear":
                    raise InputError(f"{path}: a {value} transform of MINC cannot be read, only Linear; write it as a displacement field")
                pending = True
            elif key == "Linear_Transform" and pending:
                matrix, pending = _read_rows(path, value) @ matrix, False
            else:
                raise InputError(f"{path}: {' '.join(statement.split())[:40]!r} cannot be read; a linear transform of MINC is expected")
        if pending or rest or not statements:
            raise InputError(f"{path}: ends before a Linear_Transform and its semicolon; copy the file again")
        return affine_map(path, np.linalg.inv(affine_map(path, matrix).matrix.numpy()))


def _read_rows(path: Path, text: str) -> np.ndarray:
    """A (4, 4) matrix from its first three rows."""
    try:
        return np.vstack([np.array(text.split(), dtype=np.float64).reshape(3, 4), [0, 0, 0, 1]])
    except ValueError as error:
        raise InputError(f"{path}: Linear_Transform holds {text[:40]!r}; 3x4 numbers are expected") from error
