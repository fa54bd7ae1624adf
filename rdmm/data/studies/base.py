"""The protocol of a data set of cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from rdmm.data.inputs import Inputs, ShapeInputs


class Cases(Protocol):
    """A data set; nothing is read before a case is asked for. One of shapes says so: ``settings = "shapes"``."""

    def cases(self) -> Mapping[str, Callable[[], Inputs | ShapeInputs]]: ...
