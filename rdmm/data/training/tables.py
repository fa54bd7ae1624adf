"""Images and pairs to train on, from CSV tables and the data-set JSON of Learn2Reg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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

    CSV: a header with ``image`` and ``subject``, and, where wanted, ``labels``, ``time``, ``split`` (train, validation, test) and
    ``name``. Paths are below ``root``, by default the file's own folder.
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
    """A list of pairs (read_pairs). Images that are linked by pairs count as one subject: a split never parts them."""

    path: str
    root: str | None = None

    def rows(self) -> list[Row]:
        return read_pairs(self.path, self.root)

    def items(self) -> list[Item]:
        """Every image of the list, once."""
        return list(self._linked()[0].values())

    def image_pairs(self) -> list[tuple[Item, Item]]:
        """(fixed, moving) of every row."""
        items, rows = self._linked()
        return [(items[r.files["fixed"]], items[r.files["moving"]]) for r in rows]

    def _linked(self) -> tuple[dict[Path, Item], list[Row]]:
        rows = self.rows()
        group: dict[Path, Path] = {}

        def first(p: Path) -> Path:
            while group.setdefault(p, p) != p:
                p = group[p]
            return p

        for row in rows:
            group[first(row.files["moving"])] = first(row.files["fixed"])
        out: dict[Path, Item] = {}
        for row in rows:
            for kind in ("fixed", "moving"):
                image = row.files[kind]
                new = Item(image_stem(image), str(first(image)), image, row.files.get(f"{kind}_labels"), split=row.split, where=row.where)
                old = out.setdefault(image, new)
                if old.split != new.split:
                    raise ConfigError(
                        f"{image} is in {old.split or 'no split'!r} ({old.where}) and in {new.split or 'no split'!r} ({new.where}): "
                        "what is tested on must not be trained on"
                    )
        return out, rows


def _read_table(path: Path, root: Path) -> list[Item]:
    out = []
    for record, where in read_csv(path, IMAGE_COLUMNS, ("image", "subject")):
        image = resolve_below(root, record["image"], where)
        labels = resolve_below(root, record["labels"], where) if record.get("labels") else None
        split = require_split(record.get("split", ""), where)
        name = require_plain_name(record.get("name") or image_stem(image), where)
        out.append(Item(name, record["subject"], image, labels, record.get("time", ""), split, where))
    return out


def _read_learn2reg(path: Path, root: Path) -> list[Item]:
    """``training`` and ``test`` of the published schema: {"image": "./imagesTr/NAME_0001_0000.nii.gz", "label": ...}.

    Learn2Reg names a case NAME_<case>_<modality>; the case is the subject.
    """
    data, out = read_json(path), []
    for key, split in (("training", "train"), ("test", "test")):
        for i, entry in enumerate(require_list(data.get(key, []), f"{path}: {key}")):
            where = f"{path}: {key}[{i}]"
            record = {"image": entry} if isinstance(entry, str) else require_mapping(entry, where, ("image",))
            image = resolve_below(root, record["image"], where)
            labels = resolve_below(root, record["label"], where) if record.get("label") else None
            parts = image_stem(image).rsplit("_", 2)
            case, modality = (parts[-2], parts[-1]) if len(parts) == 3 else (image_stem(image), "")
            out.append(Item(image_stem(image), case, image, labels, modality, split, where))
    if not out:
        raise ConfigError(f"{path}: no images: 'training' and 'test' are missing or empty; is it a Learn2Reg data set?")
    return out
