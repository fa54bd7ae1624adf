"""Images of a data set: where they are, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rdmm.data.paths import require_folder, require_inside
from rdmm.types import ConfigError, InputError, nearest


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    Args:
        name: that no other has.
        subject: who it is of; a split never parts a subject.
        image: its file; None: a picture is made of the labels.
        labels: label map of the same grid.
        time: of a visit, sorted as text; also the phase of a breath.
        split: ``train``, ``validation``, ``test``, or '' where it is left to chance.
        where: the row or file it is known from, for messages.
    """

    name: str
    subject: str
    image: Path | None
    labels: Path | None = None
    time: str = ""
    split: str = ""
    where: str = ""


class Items(Protocol):
    """The images of a data set, in an order that does not depend on the disk; none is read."""

    def items(self) -> list[Item]: ...


PATTERN_FIELDS = ("subject", "time", "id")


@dataclass(frozen=True)
class FolderSource:
    """Files under a folder by their names.

    A pattern is a path below ``root`` with fields in braces, each of which stands for a part of one name: {subject} whose image it is,
    {time} which of the subject's visits or breaths, {id} anything else that tells images apart. So the knees of OAI in
    ``9001104/00m_left/image.nii.gz`` are ``{subject}/{time}_{id}/image.nii.gz``, and breaths in
    ``case1/insp.nii.gz`` are ``{subject}/{time}.nii.gz``.

    Args:
        images: pattern of the images; None: pictures are made of the labels.
        labels: pattern of their label maps, with the same fields, or None.
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
                raise ConfigError(
                    f"pattern {pattern!r}: {{subject}} is missing: without it, images of one subject might be trained and tested on"
                )
            if pattern is not None and (Path(pattern).is_absolute() or ".." in Path(pattern).parts):
                raise ConfigError(f"pattern {pattern!r}: must lie below the root")
        if self.images is None and self.labels is None:
            raise ConfigError("a folder needs a pattern of images, of labels, or of both")

    def items(self) -> list[Item]:
        root = require_folder(self.root)
        out = []
        first = self.images or self.labels
        assert first is not None
        for path, fields in _match_files(root, first):
            name = "_".join(fields[k] for k in PATTERN_FIELDS if k in fields)
            labels = None if self.labels is None else require_inside(root, root / self.labels.format(**fields), str(path))
            image = None if self.images is None else require_inside(root, path, str(path))
            if labels is not None and not labels.exists():
                raise InputError(f"{path}: its label map {labels} is missing; take the pattern of labels out, or add the file")
            out.append(Item(name, fields["subject"], image, labels, fields.get("time", ""), where=str(path)))
        if not out:
            raise InputError(f"{root}: no file there is like {first}")
        return out


def _match_files(root: Path, pattern: str) -> list[tuple[Path, dict[str, str]]]:
    seen: set[str] = set()

    def field(match: re.Match[str]) -> str:
        name = match.group(1)
        again = name in seen
        seen.add(name)
        return f"(?P={name})" if again else f"(?P<{name}>[^/]+?)"

    parts = re.split(r"({.*?})", pattern)
    text = "".join(re.sub(r"{(.*?)}", field, p) if p.startswith("{") else re.escape(p) for p in parts)
    found = sorted(root.glob(re.sub(r"{.*?}", "*", pattern)))
    matched = [(p, re.fullmatch(text, p.relative_to(root).as_posix())) for p in found]
    return [(p, m.groupdict()) for p, m in matched if m is not None]


def by_subject(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items of each subject, in order of time."""
    out: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda i: (i.subject, i.time, i.name)):
        out.setdefault(item.subject, []).append(item)
    return out
