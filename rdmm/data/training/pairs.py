"""Training data: pairs by number. A number gives the same pair in every process and in every run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import ClassVar, Literal, Protocol

import numpy as np

from rdmm.data.inputs import Inputs
from rdmm.data.intensity import Normalize
from rdmm.data.pair_list import SPLITS
from rdmm.data.synthetic.contrasts import Contrasts
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.data.synthetic.strain import LEAST_SIZE, strain_scene
from rdmm.data.training.augment import Augmentation
from rdmm.data.training.library import CenterMode, CommonGrid, ImageCache, LabeledImage
from rdmm.data.training.sources import Item, Items, ListedItems, by_subject
from rdmm.data.training.splits import ItemPair, PairSampler, seeded_generator, split, split_beside
from rdmm.data.training.store import make_folder
from rdmm.data.training.survey import survey
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import ConfigError, InputError, nearest

Part = Literal["validation", "test"]

TRAINING_STREAM, HELD_OUT_STREAMS = 2, {"validation": 3, "test": 4}
"""Random streams of a data set's seed (1 shuffles the split): training and held-out pairs never share random numbers."""

SHOWN_SUBJECTS = 5
"""Subjects of each part that a training names at its start."""

MAX_REDRAWS = 20
"""How often a pair is drawn again if one of its files was left out, before training ends with an error."""


class TrainingData(Protocol):
    """Training and held-out pairs, all on one grid."""

    @property
    def grid(self) -> Grid: ...

    def name(self, number: int) -> str:
        """A description of training pair ``number``, such as its file names; nothing is read."""
        ...

    def pair(self, number: int) -> Inputs:
        """Training pair ``number`` (0, 1, ...). The same number gives the same pair."""
        ...

    def held_out(self, part: Part) -> Mapping[str, Callable[[], Inputs]]:
        """Functions that read the pairs of ``part``, by name. Networks are not trained on these pairs."""
        ...

    def describe(self) -> str:
        """One line: what there is for training, validation and tests. Everything that can be checked before training is checked."""
        ...


def _count_held_out(data: TrainingData) -> str:
    return ", ".join(f"{len(data.held_out(part))} pairs for {name}" for part, name in (("validation", "validation"), ("test", "tests")))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class ImagePairs:
    """Pairs of images of a data set, optionally augmented.

    Args:
        source: the images, or a list of pairs (for sampling=listed).
        shape, spacing, centre: the common grid (see CommonGrid).
        sampling: which pairs are used: all, within, between, longitudinal (see PairSampler), listed, or atlas.
        atlas: for sampling=atlas, the name of the image that is the fixed one of every pair. Its subject is not held out.
        shares: fractions of the subjects for training, validation and test.
        seed: random seed of the split, of the pairs and of the augmentation.
        limit: number of held-out pairs per part, spread evenly over all.
        augment: augmentation of training images; None: none.
        labels: labels to compute Dice of; None: all.
        cache: a folder of prepared images for all processes and later runs (Store); None: each process keeps its own in memory.
        skip_bad: leave out files that cannot be read and log a warning.
        intensity: normalizes the intensities.
    """

    source: Items
    shape: Sequence[int]
    spacing: Sequence[float] | None = None
    centre: CenterMode = "world"
    sampling: Literal["all", "within", "between", "longitudinal", "listed", "atlas"] = "all"
    atlas: str | None = None
    shares: Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 0
    limit: int = 20
    augment: Augmentation | None = None
    labels: Sequence[int] | None = None
    cache: str | None = None
    skip_bad: bool = False
    intensity: Normalize = field(default_factory=Normalize)

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"data.limit must be at least 1; got {self.limit}")
        if self.sampling == "listed" and not isinstance(self.source, ListedItems):
            raise ConfigError("data.sampling=listed needs a list of pairs: data/source=pairs")
        if (self.sampling == "atlas") != (self.atlas is not None):
            raise ConfigError("data.sampling=atlas and data.atlas=NAME, the name of an image, go together: give both or none")

    @cached_property
    def _items(self) -> list[Item]:
        return self.source.items()

    @cached_property
    def parts(self) -> dict[str, list[Item]]:
        """The images of train, validation and test."""
        if self.atlas is None:
            return split(self._items, self.shares, self.seed)
        return split_beside(self._items, self._atlas, self.shares, self.seed)

    @cached_property
    def _atlas(self) -> Item:
        """The image that is in every pair."""
        assert self.atlas is not None
        names = [i.name for i in self._items]
        if self.atlas not in names:
            known = f"{', '.join(names[:SHOWN_SUBJECTS])}{', ...' if len(names) > SHOWN_SUBJECTS else ''}"
            raise ConfigError(f"data.atlas={self.atlas}: no image has this name{nearest(self.atlas, names)}; there are {known}")
        return self._items[names.index(self.atlas)]

    @cached_property
    def _cache(self) -> ImageCache:
        common = CommonGrid(self.shape, self.spacing, self.centre)
        items = sorted((i for part in self.parts.values() for i in part), key=lambda i: i.name)
        unreadable, contents = survey(items, len(self.shape), self.skip_bad)
        if self.atlas in unreadable:
            raise InputError(f"{unreadable[self.atlas]} (it is the atlas, which cannot be left out)")
        if self.cache is not None:
            make_folder(self.cache)
        return ImageCache(self.parts["train"], common, self.intensity, self.skip_bad, unreadable, contents, self.cache)

    @property
    def grid(self) -> Grid:
        return self._cache.grid

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Error messages of the items left out so far, by the item's name."""
        return self._cache.unreadable

    def image_pairs(self, part: str) -> Sequence[ItemPair]:
        """All pairs (fixed, moving) of a part: train, validation or test."""
        if self.sampling == "atlas":
            return [(self._atlas, item) for item in self.parts[part] if item != self._atlas]
        if self.sampling != "listed":
            try:
                return PairSampler(self.parts[part], self.sampling)
            except ConfigError as error:
                raise ConfigError(
                    f"{part}: {error}; change data.shares ({list(self.shares)} of the subjects for training, validation and test), "
                    "e.g. [.6,.2,.2]; 0 leaves a part out"
                ) from error
        assert isinstance(self.source, ListedItems)
        names = {i.name for i in self.parts[part]}
        return [c for c in self.source.image_pairs() if c[0].name in names and c[1].name in names]

    @cached_property
    def _training(self) -> Sequence[ItemPair]:
        pairs = self.image_pairs("train")
        if not pairs:
            raise ConfigError("there are no pairs to train on; change data.shares, or the column split of the list")
        return pairs

    def _draw(self, number: int, attempt: int = 0) -> tuple[ItemPair, np.random.Generator]:
        rng = seeded_generator(self.seed, TRAINING_STREAM, number, attempt)
        return self._training[int(rng.integers(len(self._training)))], rng

    def name(self, number: int) -> str:
        return " and ".join(str(i.image or i.labels) for i in self._draw(number)[0])

    def pair(self, number: int) -> Inputs:
        for attempt in range(MAX_REDRAWS):
            (fixed, moving), rng = self._draw(number, attempt)
            fixed_read, moving_read = self._cache(fixed), self._cache(moving)
            if fixed_read is not None and moving_read is not None:
                return self._inputs(self._augmented(fixed_read, rng), self._augmented(moving_read, rng))
        raise InputError(f"{len(self.unreadable)} files cannot be read: found no training pair in {MAX_REDRAWS} draws; check the files")

    def _augmented(self, read: LabeledImage, rng: np.random.Generator) -> LabeledImage:
        return read if self.augment is None else self.augment(*read, rng)

    def _inputs(self, fixed: LabeledImage, moving: LabeledImage) -> Inputs:
        return Inputs(Pair(fixed[0], moving[0]), fixed[1], moving[1], labels=self.labels)

    def held_out(self, part: Part) -> dict[str, Callable[[], Inputs]]:
        pairs = self.image_pairs(part) if self.parts[part] else []
        if not pairs:
            return {}
        spread = np.linspace(0, len(pairs) - 1, min(self.limit, len(pairs)))
        chosen = [pairs[i] for i in sorted({round(k) for k in spread})]
        return {f"{fixed.name}-{moving.name}": partial(self._read_pair, fixed, moving) for fixed, moving in chosen}

    def describe(self) -> str:
        texts = [f"{part}: {_list_subjects([i for i in self.parts[part] if i.name not in self.unreadable])}" for part in SPLITS]
        texts += [] if self.atlas is None else [f"all are paired with {self.atlas}"]
        return f"{'; '.join(texts)}; {_count_held_out(self)}"

    def _read_pair(self, fixed: Item, moving: Item) -> Inputs:
        fixed_read, moving_read = self._cache(fixed), self._cache(moving)
        if fixed_read is None or moving_read is None:
            raise InputError(next(self.unreadable[i.name] for i in (fixed, moving) if i.name in self.unreadable))
        return self._inputs(fixed_read, moving_read)


def _list_subjects(items: Sequence[Item]) -> str:
    """How many images of how many subjects, with the first names: whether a pattern reads names rightly is seen from these."""
    names = list(by_subject(items))
    shown = ", ".join(names[:SHOWN_SUBJECTS]) + (", ..." if len(names) > SHOWN_SUBJECTS else "")
    return f"{len(items)} images of {len(names)} subjects" + (f" ({shown})" if names else "")


@dataclass(frozen=True)
class GeneratedPairs(ABC):
    """Pairs that a generator makes from a seed of each; an unlimited number."""

    shape: Sequence[int] = (128, 128)
    seed: int = 0
    limit: int = 20
    scenes: ClassVar[str]
    least: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or min(self.shape) < self.least:
            raise ConfigError(f"shape must be 2 or 3 sizes of at least {self.least}, e.g. [128,128]; got {list(self.shape)}")

    @abstractmethod
    def generate(self, seed: int) -> Inputs:
        """The pair of a seed."""

    @property
    def grid(self) -> Grid:
        return Grid(tuple(self.shape), np.eye(len(self.shape) + 1))

    def _seed(self, stream: int, number: int) -> int:
        return int(seeded_generator(self.seed, stream, number).integers(2**62))

    def name(self, number: int) -> str:
        return f"{self.scenes} of seed {self._seed(TRAINING_STREAM, number)}"

    def pair(self, number: int) -> Inputs:
        return self.generate(self._seed(TRAINING_STREAM, number))

    def held_out(self, part: Part) -> dict[str, Callable[[], Inputs]]:
        return {f"{self.scenes}{i:02d}": partial(self.generate, self._seed(HELD_OUT_STREAMS[part], i)) for i in range(self.limit)}

    def describe(self) -> str:
        return f"random {self.scenes}; {_count_held_out(self)}"


@dataclass(frozen=True)
class SyntheticPairs(GeneratedPairs):
    """The synthetic shapes of the RDMM paper (synthetic.scenes.shapes_pair)."""

    variation: Literal["own", "together"] = "own"
    scenes: ClassVar[str] = "shapes"

    def generate(self, seed: int) -> Inputs:
        pair, fixed, moving = shapes_pair(seed, self.shape, self.variation)
        return Inputs(pair, Image(fixed, pair.fixed.grid), Image(moving, pair.fixed.grid))


@dataclass(frozen=True)
class StrainPairs(GeneratedPairs):
    """Scenes in which one organ deforms (synthetic.strain.strain_scene)."""

    scenes: ClassVar[str] = "strain"
    least: ClassVar[int] = LEAST_SIZE

    def generate(self, seed: int) -> Inputs:
        return strain_scene(seed, self.shape)


@dataclass(frozen=True)
class ContrastPairs:
    """Random anatomies with random contrasts; an unlimited number of pairs."""

    contrasts: Contrasts
    seed: int = 0
    limit: int = 10

    @property
    def grid(self) -> Grid:
        return self.contrasts.grid

    def name(self, number: int) -> str:
        return f"random anatomy {number}"

    def pair(self, number: int) -> Inputs:
        return self._generate(TRAINING_STREAM, number)

    def _generate(self, stream: int, number: int) -> Inputs:
        inputs = self.contrasts.pair(seeded_generator(self.seed, stream, number))
        normalize = Normalize()
        pair = Pair(normalize(inputs.pair.fixed), normalize(inputs.pair.moving))
        return Inputs(pair, inputs.fixed_labels, inputs.moving_labels)

    def held_out(self, part: Part) -> dict[str, Callable[[], Inputs]]:
        return {f"anatomy{i:02d}": partial(self._generate, HELD_OUT_STREAMS[part], i) for i in range(self.limit)}

    def describe(self) -> str:
        return f"random anatomies; {_count_held_out(self)}"
