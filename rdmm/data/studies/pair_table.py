"""A data set of one's own: the pairs of a CSV, or of Learn2Reg's JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rdmm.data.inputs import Inputs, read_inputs
from rdmm.data.pair_list import Row, read_pairs
from rdmm.io.images import NanPolicy


@dataclass(frozen=True)
class PairTable:
    """The pairs of a list (read_pairs), with what it names beside the images: labels, masks, landmarks, regions.

    Args:
        path: CSV, or a Learn2Reg data set's JSON.
        root: folder that its paths are below; by default its own.
        split: only the pairs of this split (train, validation, test); None: all.
        labels: those that Dice and HD95 are taken of; None: all.
    """

    path: str
    root: str | None = None
    split: str | None = None
    labels: Sequence[int] | None = None
    nan: NanPolicy = "error"

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        rows = [r for r in read_pairs(self.path, self.root) if self.split in (None, r.split)]
        return {row.id: partial(self._read, row) for row in rows}

    def _read(self, row: Row) -> Inputs:
        files = dict(row.files)
        return read_inputs(files.pop("fixed"), files.pop("moving"), **files, labels=self.labels, nan=self.nan)  # type: ignore[arg-type]
