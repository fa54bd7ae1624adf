"""Every image of a data set is read once before any is used: those that cannot be used are named, and none is there twice."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rdmm import io
from rdmm.data.training.sources import Item
from rdmm.data.training.store import content_of
from rdmm.spatial.image import Image
from rdmm.types import ConfigError, InputError

log = logging.getLogger(__name__)

READERS = 4
"""Images that are read at the same time."""


@dataclass(frozen=True)
class Seen:
    """What is noted of an item: the shape and the checksum of the voxels of its image, the checksum of all its files' content (Store); or
    the error, if it cannot be used."""

    shape: tuple[int, ...] = ()
    voxels: str = ""
    content: str = ""
    error: str = ""


def read_item(item: Item) -> tuple[Image | None, Image | None]:
    """The image and the labels of an item, axes in the order of Grid.canonical; None: it has none. Raises InputError."""
    image = None if item.image is None else io.read_image(item.image)
    labels = None if item.labels is None else io.read_labels(item.labels, image)
    return None if image is None else image.canonical(), None if labels is None else labels.canonical()


def survey(items: Sequence[Item], ndim: int, skip_bad: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Read all items once.

    Args:
        ndim: number of axes of the training grid.
        skip_bad: leave out what cannot be used, with a warning.

    Returns:
        The error messages of the items left out, and the checksums of all others' content, by the item's name.

    Raises:
        InputError: an item cannot be read, or is 2D among 3D images; with ``skip_bad``: if this is so of all items.
        ConfigError: no image has ``ndim`` axes, or the same image is under two subjects or in two splits.
    """
    with ThreadPoolExecutor(READERS) as readers:
        seen = list(readers.map(_look_at, items))
    axes = Counter(len(s.shape) for s in seen if not s.error)
    if axes and ndim not in axes:
        shape = next(s.shape for s in seen if not s.error)
        raise ConfigError(f"shape has {ndim} axes but the images are {len(shape)}D {shape}; give {len(shape)} sizes")
    out = {}
    for item, s in zip(items, seen, strict=True):
        error = s.error
        if not error and len(s.shape) != ndim:
            error = f"{item.image or item.labels}: is {len(s.shape)}D {s.shape}, but shape has {ndim} axes, as the other images"
        if not error:
            continue
        if not skip_bad:
            raise InputError(f"{error} (use data.skip_bad=true to leave such files out)")
        out[item.name] = error
        log.warning("file left out (%d so far): %s", len(out), error)
    if items and len(out) == len(items):
        raise InputError(f"none of the {len(items)} images can be used; the first: {next(iter(out.values()))}")
    used = [(i, s) for i, s in zip(items, seen, strict=True) if i.name not in out]
    _require_distinct(used)
    return out, {i.name: s.content for i, s in used}


def _look_at(item: Item) -> Seen:
    try:
        image, labels = read_item(item)
    except InputError as error:
        return Seen(error=str(error))
    shown = image if image is not None else labels
    assert shown is not None
    return Seen(shown.grid.shape, hashlib.sha256(shown.data.numpy().tobytes()).hexdigest(), content_of((image, labels)))


def _require_distinct(seen: Sequence[tuple[Item, Seen]]) -> None:
    """Raise ConfigError if the voxels of one image are under two subjects or in two splits: then a test would see training data."""
    first: dict[tuple[tuple[int, ...], str], Item] = {}
    for item, s in seen:
        other = first.setdefault((s.shape, s.voxels), item)
        for what in ("subject", "split"):
            here, there = (getattr(i, what) for i in (item, other))
            if here != there:
                raise ConfigError(
                    f"{item.image or item.labels} ({what} {here!r}) holds the same voxels as {other.image or other.labels} "
                    f"({what} {there!r}): an image must not be in both training and test data; remove one of them"
                )
