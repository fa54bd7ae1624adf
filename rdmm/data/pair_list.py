"""Pairs from lists: CSV tables, and the data-set JSON of Learn2Reg."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdmm.data.given import PAIR_FILES
from rdmm.data.paths import require_plain_name, resolve_below
from rdmm.io.files import require_file
from rdmm.io.tables import read_rows
from rdmm.types import ConfigError, nearest

PAIR_COLUMNS = ("id", *PAIR_FILES, "split")


SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """One line of a list of pairs: paths by column, and where it stands."""

    id: str
    files: dict[str, Path]
    split: str
    where: str


def read_pairs(path: str | os.PathLike[str], root: str | None = None) -> list[Row]:
    """A CSV of pairs: ``fixed`` and ``moving``, and, where wanted, ``id``, ``split``, and further files (PAIR_FILES); or a Learn2Reg
    JSON's ``registration_val`` and ``registration_test``, with the label maps, masks and keypoints that its list of images names.
    Paths are below ``root``, by default the list's folder; a CSV without ``root`` may name files anywhere by absolute paths.

    Raises:
        ConfigError: a column is missing or misspelt, an id is there twice or is no plain name, a path leads out of ``root``.
    """
    path = require_file(path)
    base = Path(root).expanduser() if root else path.parent
    own = path.suffix != ".json" and root is None  # written for this machine, not with a data set that others made
    if path.suffix == ".json":
        data = read_json(path)
        lists = {k: data.get(k, []) for k in ("registration_val", "registration_test")}
        records = [(r, f"{path}: {k}[{i}]", k) for k, rows in lists.items() for i, r in enumerate(require_list(rows, f"{path}: {k}"))]
        split = {"registration_val": "validation", "registration_test": "test"}
        known = _further(data, path)
        raw = [(known(require_mapping(r, w, ("fixed", "moving"))) | {"split": split[k]}, w) for r, w, k in records]
        if not raw:
            raise ConfigError(f"{path}: no pairs: 'registration_val' and 'registration_test' are missing or empty")
    else:
        raw = read_csv(path, PAIR_COLUMNS, ("fixed", "moving"))
    files = [{k: resolve_below(base, record[k], where, own) for k in PAIR_FILES if record.get(k)} for record, where in raw]
    named = [record.get("id") or _pair_name(f["fixed"], f["moving"]) for (record, _), f in zip(raw, files, strict=True)]
    out = [
        Row(require_plain_name(name, where), f, require_split(record.get("split", ""), where), where)
        for name, (record, where), f in zip(named, raw, files, strict=True)
    ]
    require_unique([(r.id, r.where) for r in out], "id")
    return out


def _pair_name(fixed: Path, moving: Path) -> str:
    """Both cases' numbers, where the files are named as Learn2Reg does (NAME_<case>_<modality>), else both files' names."""
    found = [re.fullmatch(r".*_(\d{4})_\d{4}", image_stem(p)) for p in (fixed, moving)]
    numbers = [m.group(1) for m in found if m]
    return "_".join(numbers if len(set(numbers)) == 2 else [image_stem(fixed), image_stem(moving)])


def _further(data: dict[str, Any], path: Path) -> Callable[[dict[str, str]], dict[str, str]]:
    """Adds to a pair the label maps, masks and keypoints that a Learn2Reg JSON names beside its images."""
    entries = [e for k in ("training", "test") for e in require_list(data.get(k, []), f"{path}: {k}") if isinstance(e, dict)]
    names = {"labels": "label", "mask": "mask", "keypoints": "keypoints"}
    found = {(e.get("image"), ours): e[theirs] for e in entries for ours, theirs in names.items() if isinstance(e.get(theirs), str)}

    def known(pair: dict[str, str]) -> dict[str, str]:
        more = {f"{side}_{ours}": found.get((pair[side], ours)) for side in ("fixed", "moving") for ours in names}
        return {k: v for k, v in more.items() if v} | pair

    return known


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a JSON object is wanted, not a {type(data).__name__}")
    return data


def require_list(x: Any, where: str) -> list[Any]:
    if not isinstance(x, list):
        raise ConfigError(f"{where}: a list is wanted, not {type(x).__name__}")
    return x


def require_mapping(x: Any, where: str, wanted: Sequence[str]) -> dict[str, str]:
    if not isinstance(x, dict) or any(not isinstance(x.get(k), str) for k in wanted):
        raise ConfigError(f"{where}: an object with {', '.join(wanted)} (texts) is wanted, not {json.dumps(x)[:80]}")
    return {k: v for k, v in x.items() if isinstance(v, str)}


def read_csv(path: Path, known: Sequence[str], wanted: Sequence[str]) -> list[tuple[dict[str, str], str]]:
    """Rows of a list, and where each stands (for messages).

    Raises:
        ConfigError: a column of ``wanted`` is missing or empty, a column is not among ``known``, or there are no rows.
    """
    table = read_rows(path, ConfigError)
    table.require(wanted, f"{path}: line 1", ConfigError)
    unknown = [c for c in table.columns if c not in known]
    if unknown:
        raise ConfigError(f"{path}: line 1: unknown column {unknown[0]!r}{nearest(unknown[0], known)}; known are {', '.join(known)}")
    out = []
    for number, row in zip(table.lines, table.rows, strict=True):
        where = f"{path}: line {number}"
        empty = [c for c in wanted if not (row.get(c) or "").strip()]
        if None in row or empty:
            raise ConfigError(f"{where}: {f'{empty[0]} is empty' if empty else 'more fields than columns'}")
        out.append(({k: (v or "").strip() for k, v in row.items()}, where))
    if not out:
        raise ConfigError(f"{path}: no rows under the header")
    return out


def require_split(text: str, where: str) -> str:
    if text and text not in SPLITS:
        raise ConfigError(f"{where}: split is one of {', '.join(SPLITS)}, not {text!r}{nearest(text, SPLITS)}")
    return text


def image_stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def require_unique(names: Sequence[tuple[str, str]], what: str) -> None:
    seen: dict[str, str] = {}
    for name, where in names:
        if name in seen:
            raise ConfigError(f"{what} {name!r} is there twice: {seen[name]} and {where}")
        seen[name] = where
