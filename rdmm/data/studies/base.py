"""The protocol of a data set for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from rdmm.data.inputs import Inputs, ShapeInputs


class Cases(Protocol):
    """A data set for evaluation. A data set of shapes also has the class attribute ``settings = "shapes"``; one with notes on its cases
    (columns of the table of results), the method ``notes() -> Mapping[case, Mapping[name, text]]``."""

    def cases(self) -> Mapping[str, Callable[[], Inputs | ShapeInputs]]:
        """Functions that read each case, by name. Nothing is read before one is called."""
        ...
