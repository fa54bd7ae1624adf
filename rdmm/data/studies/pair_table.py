"""A data set from a list of pairs: a CSV, or a Learn2Reg JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rdmm.data.inputs import Inputs, read_inputs
from rdmm.data.pair_list import Row, read_pairs
from rdmm.io.images import NanPolicy


@dataclass(frozen=True)
class PairTable:
    """The pairs of a list (see read_pairs), with their labels, masks, landmarks and regions.

    Args:
        path: CSV, or a Learn2Reg data set's JSON.
        root: folder that its paths are relative to; by default the folder of ``path``.
        split: use only the pairs of this split (train, validation, test); None: all.
        labels: labels to compute Dice and HD95 of; None: all.
        nan: how to treat NaN and Inf: error, zero or mask.
    """

    path: str
    root: str | None = None
    split: str | None = None
    labels: Sequence[int] | None = None
    nan: NanPolicy = "error"

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        rows = [r for r in read_pairs(self.path, self.root) if self.split in (None, r.split)]
        return {row.id: partial(self._read, row) for row in rows}

    def notes(self) -> dict[str, Mapping[str, str]]:
        """The columns of the list that rdmm does not know, such as age, of each case."""
        return {row.id: row.notes for row in read_pairs(self.path, self.root)}

    def _read(self, row: Row) -> Inputs:
        files = dict(row.files)
        return read_inputs(files.pop("fixed"), files.pop("moving"), **files, labels=self.labels, nan=self.nan)  # type: ignore[arg-type]
