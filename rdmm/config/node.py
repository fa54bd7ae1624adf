"""Nodes of a configuration that remember the key behind each value, so that an error names what was typed."""

from __future__ import annotations

import re
from typing import Any

REFERENCE = re.compile(r"\$\{(\w[\w.]*)\}")


class Node(dict[str, Any]):
    """A mapping of a resolved configuration.

    ``origins`` maps an entry that was a reference to the key it refers to. Example: ``stages: [${affine}, ${deform}]`` gives
    ``{"stages[0]": "affine", "stages[1]": "deform"}``.
    """

    def __init__(self, entries: dict[str, Any], origins: dict[str, str]) -> None:
        super().__init__(entries)
        self.origins = origins


def typed_key(node: Any, where: str, name: str) -> str:
    """The key to type for the entry ``name`` of the node at ``where``: that of its reference if it is one.

    Args:
        name: a key of the node, or ``key[i]`` for the element i of a list.
    """
    origins = node.origins if isinstance(node, Node) else {}
    return origins.get(name) or f"{where}.{name}".lstrip(".")


def with_origins(plain: Any, raw: Any, root: Any) -> Any:
    """``plain`` with its mappings as Nodes.

    Args:
        plain: resolved configuration, plain data.
        raw: the same configuration with its references as texts (``${similarity}``).
        root: the whole raw configuration, in which references are looked up.
    """
    if isinstance(plain, list):
        return [with_origins(x, _follow(r, root)[1], root) for x, r in zip(plain, _elements(raw, plain), strict=True)]
    if not isinstance(plain, dict):
        return plain
    entries: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in plain.items():
        origin, own = _follow(raw.get(key) if isinstance(raw, dict) else None, root)
        entries[str(key)] = with_origins(value, own, root)
        found = {str(key): origin}
        if isinstance(value, list):
            found |= {f"{key}[{i}]": _follow(r, root)[0] for i, r in enumerate(_elements(own, value))}
        origins |= {k: v for k, v in found.items() if v is not None}
    return Node(entries, origins)


def without_origins(node: Any) -> Any:
    """Plain mappings and lists, to be written or recorded."""
    if isinstance(node, list):
        return [without_origins(x) for x in node]
    return {k: without_origins(v) for k, v in node.items()} if isinstance(node, dict) else node


def _elements(raw: Any, plain: list[Any]) -> list[Any]:
    return raw if isinstance(raw, list) and len(raw) == len(plain) else [None] * len(plain)


def _follow(raw: Any, root: Any) -> tuple[str | None, Any]:
    """The key that a reference leads to (None: ``raw`` is no reference), and the raw value there."""
    key = None
    while isinstance(raw, str) and (match := REFERENCE.fullmatch(raw)):
        key, raw = match.group(1), root
        for part in key.split("."):
            raw = raw.get(part) if isinstance(raw, dict) else None
    return key, raw
