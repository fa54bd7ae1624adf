"""Types of numeric options: whatever is no number in its range is a usage error before anything is read."""

from __future__ import annotations

import math
from typing import Any

import click

from rdmm.types import LENGTHS, MAX_FLOAT32, MAX_SEED, MAX_THREADS


class WholeRange(click.IntRange):
    """A whole number in a range."""

    name = "whole number"


class FiniteRange(click.FloatRange):
    """A number in a range; NaN and infinity are in none."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class VoxelValue(FiniteRange):
    """A value of a voxel: a number of float32, or a whole number of 64 bits, which stays exact."""

    def __init__(self) -> None:
        super().__init__(-MAX_FLOAT32, MAX_FLOAT32)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        try:
            return int(value)
        except ValueError:
            return number


SEED = WholeRange(0, MAX_SEED)
THREADS = WholeRange(1, MAX_THREADS)
JOBS = WholeRange(1)
VOLUME = WholeRange(0)
PERCENT = FiniteRange(0, 100)
LENGTH = FiniteRange(*LENGTHS)
VALUE = VoxelValue()
