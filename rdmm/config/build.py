"""Configuration nodes to objects."""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import sys
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rdmm.config.location import share
from rdmm.config.renamed import RENAMED
from rdmm.types import ConfigError, RdmmError, nearest

ALLOWED = ("rdmm.", "networks.", "train.", "eval.", "torch.optim.", "monai.networks.nets.")


def build(node: Any, where: str = "") -> Any:
    """The object of a node: ``_target_`` is called with the other entries, nodes inside are built first.

    Values are checked against the constructor's annotations, so a wrong type is found before any data is read.

    Raises:
        ConfigError: a target outside the allow-list, an unknown or missing argument, a value of a wrong type.
    """
    if isinstance(node, list):
        return [build(x, f"{where}[{i}]") for i, x in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {k: build(v, f"{where}.{k}".lstrip(".")) for k, v in node.items()}
    target = resolve(str(node["_target_"]), where)
    wanted = next((k for k, v in node.items() if v == "???"), None)
    if wanted is not None:
        raise ConfigError(f"{f'{where}.{wanted}'.lstrip('.')} is not set: give {f'{where}.{wanted}'.lstrip('.')}=...")
    arguments = {k: build(v, f"{where}.{k}".lstrip(".")) for k, v in node.items() if k != "_target_"}
    parameters = inspect.signature(target).parameters
    # the class of a dataclass: its __init__ has the names of its own module only, not those of the fields that it inherits
    hints = get_type_hints(target if inspect.isfunction(target) or dataclasses.is_dataclass(target) else target.__init__)
    for key, value in arguments.items():
        if key not in parameters:
            raise ConfigError(f"{where or node['_target_']}: unknown key {key!r}{nearest(key, parameters)}")
        if key in hints and not _fits(value, hints[key]):
            raise ConfigError(f"{where}.{key}: {value!r} is not {_words(hints[key])}")
    absent = [k for k, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and k not in arguments]
    if absent:
        raise ConfigError(f"{where}: {absent[0]!r} is missing")
    try:
        return target(**arguments)
    except RdmmError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def resolve(name: str, where: str) -> Any:
    name = RENAMED.get(name, name)
    if not name.startswith(ALLOWED):
        raise ConfigError(f"{where}: _target_ {name!r} is not allowed; it must begin with {', '.join(ALLOWED)}")
    root = str(share())
    if root not in sys.path:
        sys.path.insert(0, root)
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: there is no {name} ({error})") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may stand for an annotation; anything but numbers, texts, lists and mappings is let through."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if origin is collections.abc.Sequence:
        return isinstance(value, list | tuple) and all(_fits(v, arguments[0]) for v in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, dict)
    return not isinstance(value, str | int | float | list | dict) or isinstance(hint, typing.TypeVar) or hint is Any


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is collections.abc.Sequence:
        return f"a list of {_words(arguments[0])}s"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)).replace("a number", "number"))
