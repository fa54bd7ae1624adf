"""What all generators share: cases, hostile values, and random damage of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Args:
        run: what is done in the folder of the files. It raises AssertionError if a result breaks a law.
        files: contents by name.
        shown: what was drawn, for the message of a failure.
        longest: characters of the longest message.
    """

    run: Callable[[Path], object]
    files: Mapping[str, bytes] = field(default_factory=dict)
    shown: str = ""
    longest: int = 1500


Generator = Callable[[Rng], Case]

NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 5.0, 1e-3, 1e-7, 1e-38, 1e-45, 1e-300, 1e7, 1e20, 1e38, 3.5e38, 1e155, 1e300, 1.7e308)
NUMBERS += (127.0, 128.0, 255.0, 256.0, 32767.0, 32768.0, 65536.0, 2.0**24 + 1, 2.0**31, 2.0**32 - 1, 2.0**53 + 1, 2.0**63, 2.0**64)
NUMBERS += (*(-x for x in NUMBERS if x > 1), float("nan"), float("inf"), float("-inf"))

WORDS = (
    "",
    " ",
    "nan",
    "-inf",
    "1e999",
    "-1",
    "0",
    "1,5",
    "0x10",
    "1_000",
    "٣",
    "1e",
    "--1",
    "None",
    "true",
    "é",
    "a b",
    "\\",
    "'",
    '"',
    "%s",
)
WORDS += (
    "{}",
    "[",
    "]]",
    "#",
    ";",
    "=1+1",
    "@x",
    "../x",
    "/",
    ".",
    "${x}",
    "{x}",
    "\x1b[2J",
    "\x00",
    "\x85",
    "\u2028",
    "9" * 400,
    "x" * 300,
)

TOKENS = (
    b"NaN",
    b"1e999",
    b"-1",
    b"{",
    b"]",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"../",
    b"&a [*a]",
    b"!!python/object",
    b"\xff\xfe",
    b"9" * 12,
)


def pick(rng: Rng, options: Sequence[T]) -> T:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def chance(rng: Rng, share: float) -> bool:
    """True in this share of the cases."""
    return bool(rng.random() < share)


def number(rng: Rng, hostile: float = 0.1, scale: float = 1.0) -> float:
    """A normal number or, in this share of the cases, a hostile one."""
    return pick(rng, NUMBERS) if chance(rng, hostile) else float(rng.normal() * scale)


def text_of(rng: Rng, value: float, hostile: float = 0.02) -> str:
    """A number as text or, in this share of the cases, a hostile word."""
    return pick(rng, WORDS) if chance(rng, hostile) else f"{value:.9g}"


def count(rng: Rng, right: int, hostile: float = 0.05) -> int:
    """The right count or, in this share of the cases, another one."""
    wrong = (0, -1, -4, right - 1, right + 1, 2 * right, 2**31 - 1, 2**31, 2**32, 2**63, 10**30)
    return pick(rng, wrong) if chance(rng, hostile) else right


def damage(rng: Rng, data: bytes) -> bytes:
    """Cut, flip, overwrite, repeat, insert or remove bytes."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        where = int(rng.integers(0, max(1, len(out))))
        kind = int(rng.integers(0, 6))
        if kind == 0:
            del out[where:]
        elif kind == 1 and out:
            out[where % len(out)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            out[where : where + 8] = rng.bytes(8)
        elif kind == 3:
            out[where:where] = pick(rng, TOKENS)
        elif kind == 4:
            out[where:where] = out[where : where + 64]
        else:
            del out[where : where + int(rng.integers(1, 64))]
    return bytes(out)


def perhaps_damaged(rng: Rng, data: bytes, share: float = 0.25) -> bytes:
    """The bytes, damaged in this share of the cases."""
    return damage(rng, data) if chance(rng, share) else data


PLAIN: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2.5,
    1e400,
    float("nan"),
    10**30,
    2**63,
    "",
    "x",
    "nan",
    "../../x",
    "\ud800",
    "${oc.env:HOME}",
)
PLAIN += ([], {}, [None], [[[]]], {"_target_": "os.system"}, {"a": {"b": []}}, "<i onx>", "\x1b[2J", "x" * 400)


def mutated(rng: Rng, node: Any, values: Sequence[Any] = PLAIN) -> Any:
    """Nested plain data with one entry replaced, removed or added."""
    if not isinstance(node, dict | list) or not node or chance(rng, 0.1):
        return pick(rng, values)
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = pick(rng, keys)
    out: Any = dict(node) if isinstance(node, dict) else list(node)
    if chance(rng, 0.1):
        del out[key]
    elif chance(rng, 0.1):
        out = {**out, str(pick(rng, WORDS)): pick(rng, values)} if isinstance(out, dict) else [*out, pick(rng, values)]
    else:
        out[key] = mutated(rng, out[key], values)
    return out


def json_bytes(rng: Rng, node: Any) -> bytes:
    """JSON of plain data, now and then far too deep, with a key twice, or damaged."""
    text = json.dumps(node)
    if chance(rng, 0.04):
        text = text.replace("[", "[" * 5000, 1) if chance(rng, 0.5) else "[" * 100000
    if chance(rng, 0.04):
        text = text.replace("{", '{"fixed": 1, "fixed": 2, "status": 1, "status": 2, ', 1)
    return perhaps_damaged(rng, text.encode(), 0.15)
