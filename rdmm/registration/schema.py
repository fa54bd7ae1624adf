"""What the fields of a run.json hold. Every reader asks here first, so that a malformed file is an error that names the field."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rdmm.data.given import READING_OPTIONS
from rdmm.io.files import require_file
from rdmm.io.images import NanPolicy
from rdmm.types import InputError

MAX_LEVELS = 40
"""Most levels of nesting. A run.json has about ten."""


@dataclass(frozen=True)
class Field:
    """One field.

    Args:
        holds: whether a value is what the field holds.
        words: what that is, for the error.
        required: whether every run.json has it.
    """

    holds: Callable[[Any], bool]
    words: str
    required: bool = True


def is_number(x: Any) -> bool:
    """A finite number."""
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= sys.float_info.max


def _is_whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**64


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


def _is_word(x: Any) -> bool:
    return isinstance(x, str) and bool(x.strip())


def _is_checksum(x: Any) -> bool:
    return isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) is not None


def _maps_to(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, dict) and all(map(holds, x.values()))


def _lists(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, list) and all(map(holds, x))


def _is_number_or_null(x: Any) -> bool:
    return x is None or is_number(x)


def _is_metric(x: Any) -> bool:
    return _is_number_or_null(x) or _is_text(x) or (isinstance(x, dict) and all(_is_number_or_null(v) or _is_text(v) for v in x.values()))


def _is_input(x: Any) -> bool:
    return isinstance(x, dict) and _is_word(x.get("path")) and _is_checksum(x.get("sha256"))


def _is_iteration(x: Any) -> bool:
    return _maps_to(_is_number_or_null)(x) and ("velocity" not in x or {"total", "similarity"} <= set(x))


def _are_outputs(x: Any) -> bool:
    return _maps_to(_is_checksum)(x) and all(_is_word(k) and not set("/\\\0") & set(k) for k in x)


def _are_seconds(x: Any) -> bool:
    return _maps_to(is_number)(x) and "total" in x


def _is_reading(x: Any) -> bool:
    if not isinstance(x, dict) or not set(x) <= set(READING_OPTIONS):
        return False
    return x.get("nan", "error") in get_args(NanPolicy) and _is_whole(x.get("volume", 0)) and isinstance(x.get("strict", False), bool)


FIELDS: Mapping[str, Field] = {
    "status": Field(_is_word, "a text"),
    "verdict": Field(lambda x: x in ("good", "check", "failed"), "good, check or failed", required=False),
    "reasons": Field(_lists(_is_text), "a list of texts", required=False),
    "inputs": Field(_maps_to(_is_input), "a path and a sha256 for each input"),
    "in_memory": Field(_lists(_is_word), "a list of names", required=False),
    "reading": Field(_is_reading, f"the options for reading that were given ({', '.join(READING_OPTIONS)})", required=False),
    "versions": Field(_maps_to(_is_text), "texts by name"),
    "config": Field(_maps_to(lambda x: True), "settings by name"),
    "command": Field(_is_text, "a text"),
    "seed": Field(_is_whole, "a whole number"),
    "device": Field(_is_word, "a text"),
    "threads": Field(_is_whole, "a whole number"),
    "warnings": Field(_lists(_is_text), "a list of texts", required=False),
    "metrics": Field(_maps_to(_is_metric), "numbers by name"),
    "energy": Field(_maps_to(_is_number_or_null), "numbers by name"),
    "seconds": Field(_are_seconds, "numbers by name, with total"),
    "peak_memory_mb": Field(is_number, "a number"),
    "history": Field(_lists(_is_iteration), "a list with the terms of the energy of each iteration"),
    "thumbnail": Field(_is_text, "a text", required=False),
    "outputs": Field(_are_outputs, "a sha256 for each file"),
}


def read_fields(path: Path) -> dict[str, Any]:
    """The content of a run.json, each field checked.

    Raises:
        InputError: the file is missing or not JSON, or a field is missing or holds something else; the first one is named.
    """
    run = read_plain_json(path, "run.json of rdmm")
    if not isinstance(run, dict):
        raise InputError(f"{path}: not a run.json of rdmm: it must hold an object, not {_short(run)}")
    for name, field in FIELDS.items():
        if name not in run and field.required:
            raise InputError(f"{path}: not a run.json of rdmm: {name!r} is missing")
        if name in run and not field.holds(run[name]):
            raise InputError(f"{path}: not a run.json of rdmm: {name!r} must hold {field.words}, not {_short(run[name])}")
    return run


def read_plain_json(path: Path, what: str) -> Any:
    """The content of a JSON file without NaN, infinity or deep nesting; ``what`` says which kind of file it should be."""
    try:
        content = json.loads(require_file(path).read_text(encoding="utf-8"))
        _require_plain(content, "", 0)
    except RecursionError:
        raise InputError(f"{path}: not a {what}: it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{path}: not a {what} ({_short(error)})") from None
    return content


def _require_plain(node: Any, where: str, level: int) -> None:
    if level > MAX_LEVELS:
        raise ValueError(f"{where.split('.')[1]!r} is nested too deeply")
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            _require_plain(value, f"{where}.{name}", level + 1)
    elif isinstance(node, float) and not is_number(node):
        raise ValueError(f"{where.lstrip('.')!r} is not finite")


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return " ".join((text if len(text) <= 100 else f"{text[:100]}...").split())
