"""Data sets: for each case a name, and a function that reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from rdmm.inputs import Inputs, Shapes
from rdmm.types import InputError


class Cases(Protocol):
    """A data set; nothing is read before a case is asked for. One of shapes says so: ``settings = "shapes"``."""

    def cases(self) -> Mapping[str, Callable[[], Inputs | Shapes]]: ...


def folder(path: str | os.PathLike[str], part: str = "") -> Path:
    """A folder of a data set.

    Raises:
        InputError: it is not there.
    """
    out = Path(path).expanduser() / part
    if not out.is_dir():
        raise InputError(f"no data at {path}/{part}: set RDMM_DATA to the folder that holds {part or 'them'}")
    return out
