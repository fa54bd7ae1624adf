"""Split images into training, validation and test, and list the pairs of each part."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from rdmm.data.pair_list import SPLITS
from rdmm.data.training.sources import Item, by_subject
from rdmm.types import ConfigError

Sampling = Literal["all", "within", "between", "longitudinal"]

ItemPair = tuple[Item, Item]


def seeded_generator(*numbers: int) -> np.random.Generator:
    """A random generator seeded by integers. The same integers give the same numbers in every process."""
    return np.random.default_rng(np.random.SeedSequence(numbers))


def split(items: Sequence[Item], shares: Sequence[float], seed: int) -> dict[str, list[Item]]:
    """Split items into ``train``, ``validation`` and ``test``. All items of a subject go to the same part.

    Args:
        shares: fractions of the subjects for each part. A part with a fraction above 0 gets at least one subject. Ignored if the items
            have their own ``split``.
        seed: random seed of the split.

    Raises:
        ConfigError: there are too few subjects, a subject is in two splits, or only some items have a ``split``.
    """
    if len(shares) != 3 or min(shares) < 0 or not shares[0] > 0 or not abs(sum(shares) - 1) < 1e-6:
        raise ConfigError(f"data.shares must be three fractions (train > 0, validation, test) that sum to 1, got {list(shares)}")
    subjects = by_subject(items)
    if any(i.split for i in items):
        return _use_given_splits(items, subjects)
    names = sorted(subjects)
    seeded_generator(seed, 1).shuffle(names)
    counts = [max(1, round(s * len(names))) if s > 0 else 0 for s in shares[1:]]
    if sum(counts) >= len(names):
        raise ConfigError(f"{len(names)} subjects are too few for data.shares={list(shares)}: each part needs at least one")
    ends = [len(names) - sum(counts), len(names) - counts[1], len(names)]
    parts = [names[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    return {k: [i for name in sorted(part) for i in subjects[name]] for k, part in zip(SPLITS, parts, strict=True)}


def split_beside(items: Sequence[Item], atlas: Item, shares: Sequence[float], seed: int) -> dict[str, list[Item]]:
    """``split`` of all subjects but that of the atlas, which is in every pair: its images are for training.

    Raises:
        ConfigError: as ``split``, or the atlas has a split of its own other than training.
    """
    own = [i for i in items if i.subject == atlas.subject]
    held_out = next((i for i in own if i.split not in ("", SPLITS[0])), None)
    if held_out is not None:
        raise ConfigError(
            f"data.atlas={atlas.name}: its subject is in the split {held_out.split!r} ({held_out.where}), but training sees the atlas; "
            "choose an image of the split 'train'"
        )
    parts = split([i for i in items if i.subject != atlas.subject], shares, seed)
    return parts | {SPLITS[0]: [*own, *parts[SPLITS[0]]]}


def _use_given_splits(items: Sequence[Item], subjects: dict[str, list[Item]]) -> dict[str, list[Item]]:
    """The split that the items have themselves."""
    for subject, own in subjects.items():
        first = own[0]
        other = next((i for i in own if i.split != first.split), None)
        if other is not None:
            raise ConfigError(
                f"subject {subject!r} is in {first.split or 'no split'!r} ({first.where}) and in {other.split or 'no split'!r} "
                f"({other.where}): a subject must not be in both training and test data"
            )
    missing = next((i for i in items if not i.split), None)
    if missing is not None:
        raise ConfigError(f"{missing.where}: no split in this row, but other rows have one; give a split for all rows or for none")
    out = {k: [i for i in items if i.split == k] for k in SPLITS}
    if not out["train"]:
        raise ConfigError("no row has the split 'train'; add some")
    return out


@dataclass(frozen=True, eq=False)
class PairSampler(Sequence[ItemPair]):
    """All ordered pairs (fixed, moving) of a kind, as a sequence. Pairs are computed from their index; no list of them is kept.

    Args:
        items: the images.
        sampling: ``all``: pairs of different images; ``within``: of one subject; ``between``: of two subjects; ``longitudinal``: a
            later image of a subject (moving) and an earlier one (fixed).

    Raises:
        ConfigError: there are no such pairs.
    """

    items: Sequence[Item]
    sampling: Sampling

    def __post_init__(self) -> None:
        if self.sampling not in get_args(Sampling):
            raise ConfigError(f"sampling must be one of {', '.join(get_args(Sampling))}; got {self.sampling!r}")
        if not len(self):
            subjects = len(by_subject(self.items))
            raise ConfigError(f"sampling={self.sampling}: {len(self.items)} images of {subjects} subjects make no such pair")

    @cached_property
    def _flat(self) -> list[Item]:
        """All items, sorted by subject and time."""
        return [i for own in by_subject(self.items).values() for i in own]

    @cached_property
    def _partners(self) -> tuple[np.ndarray, np.ndarray]:
        """The moving items of each fixed item, and the cumulative number of pairs.

        The moving items of item i are a range of ``_flat`` with a gap: row i of the table is (start, stop, start of gap, end of gap).
        """
        rows, start = [], 0
        for own in by_subject(self.items).values():
            stop = start + len(own)
            times = [i.time for i in own]
            for k in range(len(own)):
                i, later = start + k, start + bisect.bisect_right(times, times[k])
                rows.append(
                    {
                        "all": (0, len(self.items), i, i + 1),
                        "within": (start, stop, i, i + 1),
                        "between": (0, len(self.items), start, stop),
                        "longitudinal": (later, stop, stop, stop),
                    }[self.sampling]
                )
            start = stop
        table = np.array(rows, dtype=np.int64).reshape(-1, 4)
        return table, np.cumsum(table[:, 1] - table[:, 0] - (table[:, 3] - table[:, 2]))

    def __len__(self) -> int:
        return int(self._partners[1][-1]) if len(self.items) else 0

    def __getitem__(self, index: int) -> ItemPair:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        table, ends = self._partners
        i = int(np.searchsorted(ends, index, side="right"))
        start, _, gap, after = table[i]
        j = int(start + index - (ends[i - 1] if i else 0))
        if j >= gap:
            j += int(after - gap)
        return self._flat[i], self._flat[j]
