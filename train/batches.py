"""Batches of numbered pairs, read ahead by worker processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from rdmm.data.inputs import Inputs
from rdmm.data.training.library import stack
from rdmm.data.training.pairs import TrainingData
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import InputError, RdmmError


def stack_pairs(samples: Sequence[Inputs]) -> Inputs:
    """Pairs on one grid as one pair of batches. Labels are kept if every pair has them."""

    def labels(name: str) -> Image | None:
        found = [getattr(s, name) for s in samples]
        return None if any(x is None for x in found) else stack(found)

    pair = Pair(stack([s.pair.fixed for s in samples]), stack([s.pair.moving for s in samples]))
    return Inputs(pair, labels("fixed_labels"), labels("moving_labels"), labels=samples[0].labels)


def both_ways(batch: Inputs) -> Inputs:
    """The batch, followed by the same batch with fixed and moving images swapped."""

    def joined(a: Image | None, b: Image | None) -> Image | None:
        return None if a is None or b is None else stack([a, b])

    fixed, moving, a, b = batch.pair.fixed, batch.pair.moving, batch.fixed_labels, batch.moving_labels
    pair = Pair(stack([fixed, moving]), stack([moving, fixed]))
    return replace(batch, pair=pair, fixed_labels=joined(a, b), moving_labels=joined(b, a))


def to_device(batch: Inputs, device: torch.device) -> Inputs:
    fixed, moving = (x.to(device) for x in (batch.pair.fixed, batch.pair.moving))
    a, b = (None if x is None else x.to(device) for x in (batch.fixed_labels, batch.moving_labels))
    return replace(batch, pair=Pair(fixed, moving), fixed_labels=a, moving_labels=b)


class _Numbered(Dataset):
    """Pairs by number. A worker notes its process id and the pair it reads, so that an error can name the files if it dies."""

    def __init__(self, data: TrainingData, notes: Any) -> None:
        self.data, self.notes = data, notes

    def __getitem__(self, number: int) -> Inputs | RdmmError:
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            self.notes[2 * worker.id : 2 * worker.id + 2] = [os.getpid(), number]
        try:
            return self.data.pair(number)
        except RdmmError as error:  # returned and raised later: DataLoader would turn it into a text
            return error


def _collate(samples: list[Inputs | RdmmError]) -> Inputs | RdmmError:
    """The batch, or the first error. A worker stacks its pairs, so that they are copied once: into the memory that processes share."""
    return next((s for s in samples if isinstance(s, RdmmError)), None) or stack_pairs([s for s in samples if isinstance(s, Inputs)])


def _use_one_thread(_: int) -> None:
    torch.set_num_threads(1)


def stream(data: TrainingData, numbers: Sequence[list[int]], workers: int) -> Iterator[Inputs]:
    """A batch for each list of numbers, in order. The batches do not depend on the number of workers.

    Raises:
        RdmmError: a pair could not be read.
        InputError: a worker died; the error names the files that it was reading.
    """
    spawn = multiprocessing.get_context("spawn")  # a forked process would inherit the kernels' threads and could hang
    notes = spawn.RawArray("q", 2 * workers)
    loader = DataLoader(
        _Numbered(data, notes),
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_use_one_thread,
        multiprocessing_context=spawn if workers else None,
    )
    batches = iter(loader)  # a name keeps it alive: without it the living workers would end, and the error would name them too
    try:
        try:
            for batch in batches:
                if isinstance(batch, RdmmError):
                    raise batch
                yield batch
        except (ConnectionError, EOFError):  # a worker is about to die
            time.sleep(5)  # until it has died: then DataLoader raises a RuntimeError
            raise
    except (RuntimeError, ConnectionError, EOFError) as error:
        raise _name_dead_worker(error, data, list(notes)) from error


def _name_dead_worker(error: Exception, data: TrainingData, notes: list[int]) -> Exception:
    """An error that names the pairs that dead workers were reading. Any other error is returned as it is."""
    alive = {child.pid for child in multiprocessing.active_children()}
    read = [data.name(number) for pid, number in zip(notes[::2], notes[1::2], strict=True) if pid and pid not in alive]
    if not read and "DataLoader worker" not in str(error):
        return error
    return InputError(
        f"a process that reads data died while it read {' and '.join(read) or 'its first pair'}; try trainer.workers=0 for the full error"
    )
