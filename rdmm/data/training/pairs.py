"""What networks are trained on: pairs by number, the same for the same number in every process and at every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, Protocol

import numpy as np

from rdmm.data.inputs import Inputs
from rdmm.data.intensity import Normalize
from rdmm.data.synthetic.contrasts import Contrasts
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.data.training.augment import Augment
from rdmm.data.training.library import CenterMode, CommonGrid, ImageCache
from rdmm.data.training.sources import Item, Items
from rdmm.data.training.splits import ItemPair, PairSampler, seeded_generator, split
from rdmm.data.training.tables import PairSource
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import ConfigError, InputError

Part = Literal["validation", "test"]


MAX_REDRAWS = 20
"""Pairs that are drawn anew, where files are left out, before the data set is given up."""


class TrainingData(Protocol):
    """Pairs on one grid."""

    @property
    def grid(self) -> Grid: ...

    def name(self, number: int) -> str:
        """What a training pair is made from, without reading it."""
        ...

    def pair(self, number: int) -> Inputs:
        """Training pair ``number`` (0, 1, ...): the same every time."""
        ...

    def held_out(self, part: Part) -> Mapping[str, Callable[[], Inputs]]:
        """Pairs that are not trained on, by name."""
        ...


@dataclass(frozen=True, eq=False)
class ImagePairs:
    """Pairs of a data set's images, as they are or varied at random.

    Args:
        source: the images; or a list of pairs, with sampling=listed.
        shape, spacing, centre: of the common grid (CommonGrid).
        sampling: all, within, between, longitudinal, listed.
        shares: of the subjects, for training, validation and test.
        seed: of the split and of everything drawn.
        limit: held-out pairs of each part, spread over all.
        augment: variation of training images, or None.
        labels: those that Dice is taken of; None: all.
        skip_bad: leave out files that cannot be read, naming them.
    """

    source: Items
    shape: Sequence[int]
    spacing: Sequence[float] | None = None
    centre: CenterMode = "world"
    sampling: Literal["all", "within", "between", "longitudinal", "listed"] = "all"
    shares: Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 0
    limit: int = 20
    augment: Augment | None = None
    labels: Sequence[int] | None = None
    skip_bad: bool = False
    intensity: Normalize = field(default_factory=Normalize)

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"data.limit must be at least 1, not {self.limit}")
        if self.sampling == "listed" and not isinstance(self.source, PairSource):
            raise ConfigError("data.sampling=listed needs a list of pairs: data/source=pairs")

    @cached_property
    def parts(self) -> dict[str, list[Item]]:
        """The images for train, validation and test."""
        return split(self.source.items(), self.shares, self.seed)

    @cached_property
    def _cache(self) -> ImageCache:
        common = CommonGrid(self.shape, self.spacing, self.centre)
        return ImageCache(self.parts["train"], common, self.intensity, self.skip_bad)

    @property
    def grid(self) -> Grid:
        return self._cache.grid

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Files left out so far, by the item's name."""
        return self._cache.unreadable

    def image_pairs(self, part: str) -> Sequence[ItemPair]:
        """(fixed, moving) of a part."""
        if self.sampling != "listed":
            try:
                return PairSampler(self.parts[part], self.sampling)
            except ConfigError as error:
                raise ConfigError(f"{part}: {error}; change data.shares ({list(self.shares)}), where 0 leaves a part out") from error
        assert isinstance(self.source, PairSource)
        names = {i.name for i in self.parts[part]}
        return [c for c in self.source.image_pairs() if c[0].name in names and c[1].name in names]

    @cached_property
    def _training(self) -> Sequence[ItemPair]:
        found = self.image_pairs("train")
        if not found:
            raise ConfigError("no pair is left to train on; see data.shares, or the column split")
        return found

    def _draw(self, number: int, attempt: int = 0) -> tuple[ItemPair, np.random.Generator]:
        rng = seeded_generator(self.seed, 2, number, attempt)
        return self._training[int(rng.integers(len(self._training)))], rng

    def name(self, number: int) -> str:
        return " and ".join(str(i.image or i.labels) for i in self._draw(number)[0])

    def pair(self, number: int) -> Inputs:
        for attempt in range(MAX_REDRAWS):
            chosen, rng = self._draw(number, attempt)
            read = [self._cache(i) for i in chosen]
            if all(r is not None for r in read):
                varied = [r if self.augment is None else self.augment(*r, rng) for r in read if r is not None]
                return self._inputs(*varied[0], *varied[1])
        raise InputError(f"{len(self.unreadable)} files cannot be read: no pair to train on was found in {MAX_REDRAWS} draws")

    def _inputs(self, fixed: Image, fixed_labels: Image | None, moving: Image, moving_labels: Image | None) -> Inputs:
        return Inputs(Pair(fixed, moving), fixed_labels, moving_labels, labels=self.labels)

    def held_out(self, part: Part) -> dict[str, Callable[[], Inputs]]:
        if not self.parts[part]:
            return {}
        found = self.image_pairs(part)
        chosen = sorted({round(i) for i in np.linspace(0, len(found) - 1, min(self.limit, len(found)))}) if found else []
        return {f"{found[i][0].name}-{found[i][1].name}": partial(self._read_pair, found[i]) for i in chosen}

    def _read_pair(self, chosen: ItemPair) -> Inputs:
        read = [self._cache(i) for i in chosen]
        if any(r is None for r in read):
            raise InputError(next(self.unreadable[i.name] for i in chosen if i.name in self.unreadable))
        (fixed, a), (moving, b) = (r for r in read if r is not None)
        return self._inputs(fixed, a, moving, b)


@dataclass(frozen=True)
class SyntheticPairs:
    """The paper's synthetic shapes (synthetic.shapes_pair), without end."""

    shape: Sequence[int] = (128, 128)
    variation: Literal["own", "together"] = "own"
    seed: int = 0
    limit: int = 20

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or min(self.shape) < 16:
            raise ConfigError(f"shape must be 2 or 3 sizes of 16 and more, not {list(self.shape)}")

    @property
    def grid(self) -> Grid:
        return Grid(tuple(self.shape), np.eye(len(self.shape) + 1))

    def _seed(self, part: int, number: int) -> int:
        return int(seeded_generator(self.seed, part, number).integers(2**62))

    def name(self, number: int) -> str:
        return f"shapes of seed {self._seed(2, number)}"

    def pair(self, number: int) -> Inputs:
        return self._generate(self._seed(2, number))

    def _generate(self, seed: int) -> Inputs:
        pair, fixed, moving = shapes_pair(seed, self.shape, self.variation)
        return Inputs(pair, Image(fixed, pair.fixed.grid), Image(moving, pair.fixed.grid))

    def held_out(self, part: Part) -> dict[str, Callable[[], Inputs]]:
        kind = {"validation": 3, "test": 4}[part]
        return {f"shapes{i:02d}": partial(self._generate, self._seed(kind, i)) for i in range(self.limit)}


@dataclass(frozen=True)
class ContrastPairs:
    """Random anatomies in random contrasts, without end."""

    contrasts: Contrasts
    seed: int = 0
    limit: int = 10

    @property
    def grid(self) -> Grid:
        return self.contrasts.grid

    def name(self, number: int) -> str:
        return f"random anatomy {number}"

    def pair(self, number: int) -> Inputs:
        return self._generate(2, number)

    def _generate(self, part: int, number: int) -> Inputs:
        found = self.contrasts.pair(seeded_generator(self.seed, part, number))
        normal = Normalize()
        pair = Pair(normal(found.pair.fixed), normal(found.pair.moving))
        return Inputs(pair, found.fixed_labels, found.moving_labels)

    def held_out(self, part: Part) -> dict[str, Callable[[], Inputs]]:
        kind = {"validation": 3, "test": 4}[part]
        return {f"anatomy{i:02d}": partial(self._generate, kind, i) for i in range(self.limit)}
