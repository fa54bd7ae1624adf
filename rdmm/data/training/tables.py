"""Training images and pairs from CSV tables and the data-set JSON of Learn2Reg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rdmm.data.pair_list import (
    Row,
    image_stem,
    read_csv,
    read_json,
    read_pairs,
    require_list,
    require_mapping,
    require_split,
    require_unique,
)
from rdmm.data.paths import require_plain_name, resolve_below
from rdmm.data.training.sources import Item
from rdmm.io.files import require_file
from rdmm.types import ConfigError

IMAGE_COLUMNS = ("image", "subject", "labels", "time", "split", "name")


@dataclass(frozen=True)
class TableSource:
    """A CSV of images, or a Learn2Reg JSON.

    The CSV has the columns ``image`` and ``subject``, and optionally ``labels``, ``time``, ``split`` (train, validation, test) and
    ``name``. Paths are relative to ``root``, by default the folder of the file.
    """

    path: str
    root: str | None = None

    def items(self) -> list[Item]:
        path = require_file(self.path)
        root = Path(self.root).expanduser() if self.root else path.parent
        items = _read_learn2reg(path, root) if path.suffix == ".json" else _read_table(path, root)
        require_unique([(i.name, i.where) for i in items], "name")
        return items


@dataclass(frozen=True)
class PairSource:
    """A list of pairs (see read_pairs). Images connected by pairs count as one subject, so they are all in the same split."""

    path: str
    root: str | None = None

    def rows(self) -> list[Row]:
        """The rows of the list."""
        return read_pairs(self.path, self.root)

    def items(self) -> list[Item]:
        """All images of the list, each once."""
        return list(self._read_items()[0].values())

    def image_pairs(self) -> list[tuple[Item, Item]]:
        """The pair (fixed, moving) of each row."""
        items, rows = self._read_items()
        return [(items[r.files["fixed"]], items[r.files["moving"]]) for r in rows]

    def _read_items(self) -> tuple[dict[Path, Item], list[Row]]:
        """The images by path, and the rows. The subject of an image is the representative of its group of connected images."""
        rows = self.rows()
        group: dict[Path, Path] = {}

        def representative(p: Path) -> Path:
            while group.setdefault(p, p) != p:
                p = group[p]
            return p

        for row in rows:
            group[representative(row.files["moving"])] = representative(row.files["fixed"])
        out: dict[Path, Item] = {}
        for row in rows:
            for kind in ("fixed", "moving"):
                image = row.files[kind]
                labels = row.files.get(f"{kind}_labels")
                subject = str(representative(image))
                new = Item(image_stem(image), subject, image, labels, split=row.split, where=row.where)
                old = out.setdefault(image, new)
                if old.split != new.split:
                    raise ConfigError(
                        f"{image} is in {old.split or 'no split'!r} ({old.where}) and in {new.split or 'no split'!r} ({new.where}): "
                        "an image must not be in both training and test data"
                    )
        names = _distinct_names(list(out))
        return {path: replace(item, name=names[path]) for path, item in out.items()}, rows


def _distinct_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each image: that of its file, with as many of its folders as it takes to tell all images apart."""
    for count in range(1, max((len(p.parts) for p in paths), default=0) + 1):
        names = {p: "_".join([*p.parts[-count:-1], image_stem(p)]) for p in paths}
        if len({*names.values()}) == len(paths):
            break
    require_unique([(name, str(path)) for path, name in names.items()], "the name of an image,")
    return names


def _read_table(path: Path, root: Path) -> list[Item]:
    """The images of a CSV."""
    out = []
    for record, where in read_csv(path, IMAGE_COLUMNS, ("image", "subject")):
        image = resolve_below(root, record["image"], where)
        labels = resolve_below(root, record["labels"], where) if record.get("labels") else None
        split = require_split(record.get("split", ""), where)
        name = require_plain_name(record.get("name") or image_stem(image), where)
        out.append(Item(name, record["subject"], image, labels, record.get("time", ""), split, where))
    return out


def _read_learn2reg(path: Path, root: Path) -> list[Item]:
    """The images of ``training`` and ``test`` of a Learn2Reg JSON: {"image": "./imagesTr/NAME_0001_0000.nii.gz", "label": ...}.

    Files are named NAME_<case>_<modality>; the case becomes the subject. ``registration_val`` and ``registration_test`` name pairs of
    images that may be in ``training``, too: their cases are for validation and tests, not for training.
    """
    data, out = read_json(path), []
    held_out = _held_out_cases(data, path)
    for key, split in (("training", "train"), ("test", "test")):
        for i, entry in enumerate(require_list(data.get(key, []), f"{path}: {key}")):
            where = f"{path}: {key}[{i}]"
            record = {"image": entry} if isinstance(entry, str) else require_mapping(entry, where, ("image",))
            image = resolve_below(root, record["image"], where)
            labels = resolve_below(root, record["label"], where) if record.get("label") else None
            case, modality = _case_and_modality(record["image"])
            own, place = held_out.get(case, (split, where))
            out.append(Item(image_stem(image), case, image, labels, modality, own, place))
    if not out:
        raise ConfigError(f"{path}: no images: 'training' and 'test' are missing or empty; give the data-set JSON of Learn2Reg")
    if data.get("training") and not any(i.split == "train" for i in out):
        raise ConfigError(
            f"{path}: all cases of 'training' are in 'registration_val' or 'registration_test', which leaves no image to train on"
        )
    return out


def _held_out_cases(data: Mapping[str, Any], path: Path) -> dict[str, tuple[str, str]]:
    """The cases of the pairs for validation and tests, each with its split and its place in the file.

    Raises:
        ConfigError: a case is in both.
    """
    out: dict[str, tuple[str, str]] = {}
    for key, split in (("registration_val", "validation"), ("registration_test", "test")):
        for i, entry in enumerate(require_list(data.get(key, []), f"{path}: {key}")):
            where = f"{path}: {key}[{i}]"
            pair = require_mapping(entry, where, ("fixed", "moving"))
            for name in (pair["fixed"], pair["moving"]):
                there, place = out.setdefault(_case_and_modality(name)[0], (split, where))
                if there != split:
                    raise ConfigError(f"{name} is in {place} and in {where}: a case must not be in both validation and test data")
    return out


def _case_and_modality(name: str) -> tuple[str, str]:
    """The case and the modality of a file named NAME_<case>_<modality>; of any other name: the name and ''."""
    stem = image_stem(Path(name))
    parts = stem.rsplit("_", 2)
    return (parts[1], parts[2]) if len(parts) == 3 else (stem, "")
