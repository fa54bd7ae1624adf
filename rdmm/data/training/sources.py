"""Find the images of a data set: their files and their subjects."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from rdmm.data.pair_list import require_unique
from rdmm.data.paths import require_folder
from rdmm.types import ConfigError, InputError, nearest


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    Args:
        name: unique name.
        subject: the person in the image; all images of a subject are in the same split.
        image: its file; None: an image is made from the labels.
        labels: its label map, on the same grid.
        time: time of the visit, or phase of the breath; sorted as text.
        split: ``train``, ``validation``, ``test``, or '' for a random split.
        where: the row or file that describes it, for error messages.
    """

    name: str
    subject: str
    image: Path | None
    labels: Path | None = None
    time: str = ""
    split: str = ""
    where: str = ""


class Items(Protocol):
    """A source of images."""

    def items(self) -> list[Item]:
        """The images, in an order that does not depend on the disk. No image is read."""
        ...


@runtime_checkable
class ListedItems(Items, Protocol):
    """A source that also says which images are pairs (data.sampling=listed)."""

    def image_pairs(self) -> list[tuple[Item, Item]]:
        """Fixed and moving image of each pair."""
        ...


PATTERN_FIELDS = ("subject", "time", "id")


@dataclass(frozen=True)
class FolderSource:
    """Images found by their file names below a folder.

    A pattern is a path below ``root`` with fields in braces. Each field matches a part of one name: {subject} the person, {time} the
    visit or the phase of a breath, {id} anything else that distinguishes images. Links may lead anywhere. For example, the pattern
    ``{subject}/{time}_{id}/image.nii.gz`` matches OAI's knees, as ``9001104/00m_left/image.nii.gz``, and
    ``{subject}/{time}.nii.gz`` matches ``case1/insp.nii.gz``. A name that can be read in two ways is an error: of
    ``sub_01_ses_1.nii.gz``, ``{subject}_{time}.nii.gz`` could read the subjects sub, sub_01 and sub_01_ses.

    Args:
        root: the folder.
        images: pattern of the images; None: images are made from the labels.
        labels: pattern of their label maps, with the same fields; None: no labels.
    """

    root: str
    images: str | None = "{subject}.nii.gz"
    labels: str | None = None

    def __post_init__(self) -> None:
        for pattern in (self.images, self.labels):
            unknown = [f for f in re.findall(r"{(.*?)}", pattern or "{subject}") if f not in PATTERN_FIELDS]
            if unknown:
                raise ConfigError(
                    f"pattern {pattern!r}: unknown field {unknown[0]!r}{nearest(unknown[0], PATTERN_FIELDS)}; "
                    f"known fields are {', '.join(PATTERN_FIELDS)}"
                )
            if pattern is not None and "{subject}" not in pattern:
                raise ConfigError(f"pattern {pattern!r}: {{subject}} is missing; it is needed to keep all images of a subject in one split")
            if pattern is not None and (Path(pattern).is_absolute() or ".." in Path(pattern).parts):
                raise ConfigError(f"pattern {pattern!r}: must be a path below the root, without ..")
        if self.images is None and self.labels is None:
            raise ConfigError("give a pattern of images, of labels, or of both")

    def items(self) -> list[Item]:
        root = require_folder(self.root)
        out = []
        first = self.images or self.labels
        assert first is not None
        for path, fields in _match_files(root, first):
            name = "_".join(fields[k] for k in PATTERN_FIELDS if k in fields)
            labels = None if self.labels is None else root / self.labels.format(**fields)
            image = None if self.images is None else path
            if labels is not None and not os.path.exists(labels):
                raise InputError(f"{path}: its label map {labels} is missing; add the file, or leave out the pattern of labels")
            out.append(Item(name, fields["subject"], image, labels, fields.get("time", ""), where=str(path)))
        if not out:
            raise InputError(f"{root}: no file matches the pattern {first}")
        require_unique([(i.name, f"{i.where} (rename one)") for i in out], "the name of an image,")
        return out


def _match_files(root: Path, pattern: str) -> list[tuple[Path, dict[str, str]]]:
    """The files that match a pattern, each with the values of its fields, sorted by path.

    Raises:
        ConfigError: a name can be read in two ways.
    """
    shortest, longest = (_pattern_regex(pattern, repeat) for repeat in ("+?", "+"))  # equal: then there is no third reading
    out = []
    for path in sorted(root.glob(re.sub(r"({.*?})+", "*", pattern))):
        name = path.relative_to(root).as_posix()
        first, last = re.fullmatch(shortest, name), re.fullmatch(longest, name)
        if first is None or last is None:
            continue
        if first.groupdict() != last.groupdict():
            readings = [", ".join(f"{k}={v!r}" for k, v in match.groupdict().items()) for match in (first, last)]
            raise ConfigError(
                f"{path}: the pattern {pattern} reads {readings[0]}, or {readings[1]}; write more of the names into the pattern, as "
                "sub_{subject}_ses_{time}.nii.gz, or list the images in a table (data/source=table)"
            )
        out.append((path, first.groupdict()))
    return out


def _pattern_regex(pattern: str, repeat: str) -> str:
    """A pattern as a regular expression; a field's second mention repeats its first. ``repeat``: of a field's characters."""
    seen: set[str] = set()

    def field(name: str) -> str:
        again = name in seen
        seen.add(name)
        return f"(?P={name})" if again else f"(?P<{name}>[^/]{repeat})"

    return "".join(field(part[1:-1]) if part.startswith("{") else re.escape(part) for part in re.split(r"({.*?})", pattern))


def by_subject(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items grouped by subject, in order of time."""
    out: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda i: (i.subject, i.time, i.name)):
        out.setdefault(item.subject, []).append(item)
    return out
