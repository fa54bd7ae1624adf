"""Read lists of pairs: CSV tables, and the data-set JSON of Learn2Reg."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdmm.data.given import ALSO_COLUMNS, MAX_IMAGES, PAIR_FILES, Also, read_also
from rdmm.data.paths import require_plain_name, resolve_below
from rdmm.io.files import require_file
from rdmm.io.formats.choice import ENDINGS
from rdmm.io.tables import read_rows
from rdmm.types import ConfigError, nearest

log = logging.getLogger(__name__)

PAIR_COLUMNS = ("id", *PAIR_FILES, "split", *ALSO_COLUMNS)
SPELLING = 0.8
"""Likeness from which an unknown column is a known one misspelled. fixed_label and fixed_labels: .96; fixed_age and fixed_mask: .74."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """One line of a list of pairs.

    Args:
        id: name of the pair.
        files: paths by column name.
        split: train, validation, test or ''.
        where: its place in the list, for error messages.
        also: further images of the subjects, of the columns fixed_2, moving_2, weight_2, fixed_3...
        notes: the columns that rdmm does not know, such as age or site, for the table of results.
    """

    id: str
    files: dict[str, Path]
    split: str
    where: str
    notes: Mapping[str, str] = field(default_factory=dict)
    also: Sequence[Also] = ()


def read_pairs(path: str | os.PathLike[str], root: str | None = None) -> list[Row]:
    """Read a list of pairs.

    A CSV has the columns ``fixed`` and ``moving``, and optionally ``id``, ``split``, further files (PAIR_FILES) and notes of any name.
    Of a Learn2Reg JSON, ``registration_val`` and ``registration_test`` are read, with the label maps, masks and keypoints that the JSON
    lists for the images.

    Args:
        root: folder that the paths are relative to and must not leave; by default the folder of ``path``. The paths of a CSV without
            ``root`` may be absolute and may lead anywhere, those of a JSON stay in its folder.

    Raises:
        ConfigError: a column is missing or misspelled, an id occurs twice or cannot be a file name, or a path leads out of ``root``.
    """
    path = require_file(path)
    is_json = path.suffix == ".json"
    folder = Path(root).expanduser() if root else path.parent
    anywhere = not is_json and root is None  # a list written for this machine; files of other data sets must be in their folder
    records = _learn2reg_pairs(path) if is_json else read_csv(path, PAIR_COLUMNS, ("fixed", "moving"))
    rows = []
    for record, where in records:
        files = {k: resolve_below(folder, record[k], where, anywhere) for k in PAIR_FILES if record.get(k)}
        id = record.get("id") or _pair_name(files["fixed"], files["moving"])
        notes = {} if is_json else {k: v for k, v in record.items() if k not in PAIR_COLUMNS}
        also = _read_also(folder, record, where, anywhere)
        rows.append(Row(require_plain_name(id, where), files, require_split(record.get("split", ""), where), where, notes, also))
    require_unique([(r.id, r.where) for r in rows], "id")
    return rows


def _read_also(folder: Path, record: Mapping[str, str], where: str, anywhere: bool) -> list[Also]:
    """The further images of a row."""
    found = []
    for k in range(2, MAX_IMAGES + 1):
        fixed, moving, weight = (record.get(f"{column}_{k}", "") for column in ("fixed", "moving", "weight"))
        if (fixed or moving or weight) and not (fixed and moving):
            raise ConfigError(f"{where}: a further image needs both, fixed_{k} and moving_{k} (weight_{k} is 1 if it is empty)")
        if fixed:
            try:
                number = float(weight or 1)
                found += read_also((*(str(resolve_below(folder, x, where, anywhere)) for x in (fixed, moving)), number))
            except ValueError:
                raise ConfigError(f"{where}: weight_{k} must be a number > 0; got {weight!r}") from None
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
    return found


def noted(notes: Mapping[str, str], taken: Container[str]) -> dict[str, str]:
    """The notes of a row as columns of a table of results: one whose name is ``taken`` by a result is NAME_of_list."""
    return {f"{name}_of_list" if name in taken else name: text for name, text in notes.items()}


def _pair_name(fixed: Path, moving: Path) -> str:
    """The numbers of both cases if the files are named as in Learn2Reg (NAME_<case>_<modality>); otherwise both file names."""
    found = [re.fullmatch(r".*_(\d{4})_\d{4}", image_stem(p)) for p in (fixed, moving)]
    numbers = [m.group(1) for m in found if m]
    return "_".join(numbers if len(set(numbers)) == 2 else [image_stem(fixed), image_stem(moving)])


def _learn2reg_pairs(path: Path) -> list[tuple[dict[str, str], str]]:
    """The pairs of a Learn2Reg JSON as records with the columns of a CSV, each with its place in the file."""
    data = read_json(path)
    files = _learn2reg_files(data, path)
    records = []
    for key, split in (("registration_val", "validation"), ("registration_test", "test")):
        for i, entry in enumerate(require_list(data.get(key, []), f"{path}: {key}")):
            where = f"{path}: {key}[{i}]"
            pair = require_mapping(entry, where, ("fixed", "moving"))
            records.append((_optional_files(pair, files) | pair | {"split": split}, where))
    if not records:
        raise ConfigError(f"{path}: no pairs: 'registration_val' and 'registration_test' are missing or empty")
    return records


def _learn2reg_files(data: dict[str, Any], path: Path) -> dict[tuple[str, str], str]:
    """The files that a Learn2Reg JSON lists for its images, by image and kind: labels, mask or keypoints."""
    files = {}
    for key in ("training", "test"):
        for entry in require_list(data.get(key, []), f"{path}: {key}"):
            texts = {k: v for k, v in entry.items() if isinstance(v, str)} if isinstance(entry, dict) else {}
            for kind, key_of_file in (("labels", "label"), ("mask", "mask"), ("keypoints", "keypoints")):
                if "image" in texts and key_of_file in texts:
                    files[texts["image"], kind] = texts[key_of_file]
    return files


def _optional_files(pair: dict[str, str], files: dict[tuple[str, str], str]) -> dict[str, str]:
    """Label maps, masks and keypoints of both images of a pair, by column name."""
    columns = {(side, kind): f"{side}_{kind}" for side in ("fixed", "moving") for kind in ("labels", "mask", "keypoints")}
    return {name: files[pair[side], kind] for (side, kind), name in columns.items() if files.get((pair[side], kind))}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file with an object. Raises ConfigError for anything else, and for a key that occurs twice in an object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must contain a JSON object, not a {type(data).__name__}")
    return data


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values; raises ValueError if a key occurs twice."""
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice in an object")
    return out


def require_list(x: Any, where: str) -> list[Any]:
    """``x``; raises ConfigError if it is not a list."""
    if not isinstance(x, list):
        raise ConfigError(f"{where}: must be a list, not {type(x).__name__}")
    return x


def require_mapping(x: Any, where: str, wanted: Sequence[str]) -> dict[str, str]:
    """The texts of the JSON object ``x``; raises ConfigError if it is none, or a key of ``wanted`` is missing or empty."""
    if not isinstance(x, dict) or any(not isinstance(x.get(k), str) or not x[k].strip() for k in wanted):
        raise ConfigError(f"{where}: must be an object with {', '.join(wanted)} (texts), not {json.dumps(x)[:80]}")
    return {k: v for k, v in x.items() if isinstance(v, str)}


def read_csv(path: Path, known: Sequence[str], wanted: Sequence[str]) -> list[tuple[dict[str, str], str]]:
    """The rows of a CSV list with all their columns, each with its place in the file, for error messages.

    Raises:
        ConfigError: a column of ``wanted`` is missing or empty, a name is nearly one of ``known``, or there are no rows.
    """
    table = read_rows(path, ConfigError, wanted)
    table.require(wanted, f"{path}: line 1", ConfigError)
    free = [k for k in known if k not in table.columns]
    notes = [c for c in table.columns if c not in known]
    for column in notes:
        if meant := nearest(column, free, SPELLING):
            raise ConfigError(f"{path}: line 1: unknown column {column!r}{meant}; rename it, or take it out")
    if notes:
        log.info("%s: columns of your own: %s", path, ", ".join(notes))
    out = []
    for number, row in zip(table.lines, table.rows, strict=True):
        where = f"{path}: line {number}"
        empty = [c for c in wanted if not row[c].strip()]
        if empty:
            raise ConfigError(f"{where}: {empty[0]} is empty")
        out.append(({k: v.strip() for k, v in row.items()}, where))
    if not out:
        raise ConfigError(f"{path}: no rows below the header")
    return out


def require_split(text: str, where: str) -> str:
    """``text``; raises ConfigError if it is neither empty nor the name of a split."""
    if text and text not in SPLITS:
        raise ConfigError(f"{where}: split must be one of {', '.join(SPLITS)}, not {text!r}{nearest(text, SPLITS)}")
    return text


def image_stem(path: Path) -> str:
    """The file name without the ending of an image, such as .nii.gz."""
    ending = max((e for e in ENDINGS if path.name.lower().endswith(e)), key=len, default="")
    return path.name[: len(path.name) - len(ending)]


def require_unique(names: Sequence[tuple[str, str]], what: str) -> None:
    """Raise ConfigError if a name occurs twice among pairs (name, place)."""
    seen: dict[str, str] = {}
    for name, where in names:
        if name in seen:
            raise ConfigError(f"{what} {name!r} occurs twice: {seen[name]} and {where}")
        seen[name] = where
