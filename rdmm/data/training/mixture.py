"""Training pairs of several data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from rdmm.data.inputs import Inputs
from rdmm.data.training.pairs import Part, TrainingData
from rdmm.data.training.splits import seeded_generator
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import ConfigError, nearest

CHOICE_STREAM = 6
"""The random stream of a seed that chooses the data set of each pair."""

SAME_SPACING = 1e-3
"""Relative difference of the voxels' sizes, in domain units, up to which grids count as the same."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several data sets: each training pair is of one of them, drawn by weight; held-out pairs are those of all.

    Args:
        sets: the data sets by name. Their grids must have the same shape, and voxels of the same proportions. Training images get the
            grid of the first one.
        weights: how often pairs of a set are drawn, relative to the others, by name; 1 for those that are not named.
        seed: of the choice.
    """

    sets: Mapping[str, TrainingData]
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sets:
            raise ConfigError("data.sets is empty: add data sets, e.g. +data@data.sets.brains=folder data.sets.brains.source.root=brains")
        for name, weight in self.weights.items():
            if name not in self.sets:
                raise ConfigError(f"data.weights.{name}: there is no such data set{nearest(name, self.sets)}; add it to data.sets")
            if weight < 0:
                raise ConfigError(f"data.weights.{name} must be >= 0; got {weight}")
        if not sum(self._all_weights) > 0:
            raise ConfigError("data.weights are all 0: give at least one set a weight above 0")

    @property
    def _all_weights(self) -> list[float]:
        return [self.weights.get(name, 1.0) for name in self.sets]

    @cached_property
    def grid(self) -> Grid:
        """The grid of the first set. Raises ConfigError if another set's grid does not fit it."""
        (first, grid), *others = ((name, data.grid) for name, data in self.sets.items())
        for name, other in others:
            if other.shape != grid.shape or not np.allclose(other.spacing, grid.spacing, rtol=SAME_SPACING):
                raise ConfigError(
                    f"data.sets: {name} has {other.shape} voxels of {_sizes(other)}, {first} {grid.shape} of {_sizes(grid)}; shape and "
                    "proportions must be the same: choose the spacing of a data set of files, data.sets.NAME.spacing=[...]"
                )
        return grid

    def _draw(self, number: int) -> TrainingData:
        """The data set of a training pair."""
        weights = np.asarray(self._all_weights)
        chosen = seeded_generator(self.seed, CHOICE_STREAM, number).choice(len(weights), p=weights / weights.sum())
        return list(self.sets.values())[int(chosen)]

    def name(self, number: int) -> str:
        return self._draw(number).name(number)

    def pair(self, number: int) -> Inputs:
        inputs = self._draw(number).pair(number)

        def placed(image: Image | None) -> Image | None:
            return None if image is None else Image(image.data, self.grid)

        pair = Pair(Image(inputs.pair.fixed.data, self.grid), Image(inputs.pair.moving.data, self.grid))
        return replace(inputs, pair=pair, fixed_labels=placed(inputs.fixed_labels), moving_labels=placed(inputs.moving_labels))

    def held_out(self, part: Part) -> dict[str, Callable[[], Inputs]]:
        return {f"{name}-{case}": read for name, data in self.sets.items() for case, read in data.held_out(part).items()}

    def describe(self) -> str:
        weights = np.asarray(self._all_weights) / sum(self._all_weights)
        shares = [f"{name} ({share:.0%} of the pairs)" for name, share in zip(self.sets, weights, strict=True)]
        texts = [f"{share}: {data.describe()}" for share, data in zip(shares, self.sets.values(), strict=True)]
        return f"{' | '.join(texts)}; one grid of {self.grid.shape}"


def _sizes(grid: Grid) -> str:
    return " x ".join(f"{h:.3g}" for h in grid.voxel) + " mm"
