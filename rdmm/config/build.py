"""Configuration nodes to objects."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rdmm.config.explain import brief, default_value, option_override, options_of, options_with
from rdmm.config.location import share
from rdmm.config.node import typed_key
from rdmm.config.plugins import LIBRARIES, OWN, hint, is_trusted
from rdmm.config.renamed import RENAMED
from rdmm.config.trust import foreign_targets
from rdmm.types import ConfigError, RdmmError, nearest

ALLOWED = tuple(f"{package}." for package in (*OWN, *LIBRARIES))
"""What the names of classes that the user types may begin with, beside trusted packages."""


def build(node: Any, where: str = "") -> Any:
    """The object that a node describes: ``_target_`` is called with the other entries; nodes inside are built first.

    Values are checked against the constructor's annotations, so a wrong type is found before any data are read. With ``_partial_: true``
    the object is the class with these entries, to be called with the arguments that are left.

    Args:
        node: a node of a configuration (compose), or plain data.
        where: its key, for errors. An entry that is a reference goes by the key it refers to.

    Raises:
        ConfigError: a target of a package that is not trusted, an unknown or missing argument, or a value of a wrong type; or a class
            from outside rdmm cannot be imported, or raises an error.
    """
    if isinstance(node, list):
        return [build(x, f"{where}[{i}]") for i, x in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {k: _build_entry(node, where, k) for k in node}
    name, is_partial = str(node["_target_"]), node.get("_partial_", False)
    target = resolve(name, where)
    keys = {k: typed_key(node, where, k) for k in node if k not in ("_target_", "_partial_")}
    for argument, key in keys.items():
        if node[argument] == "???":
            raise ConfigError(f"{key} is not set: give {key}=...")
    arguments = {argument: _build_entry(node, where, argument) for argument in keys}
    _check_arguments(target, arguments, keys, where or name, is_partial)
    if is_partial:
        return functools.partial(target, **arguments)
    try:
        return target(**arguments)
    except RdmmError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    except Exception as error:
        if not foreign_targets(node):
            raise
        raise ConfigError(f"{where}: {name} raised {_in_short(error)}") from error


def build_as(kind: Any, node: Any, where: str) -> Any:
    """``build``, for an object of the class ``kind``, or with what the protocol ``kind`` names.

    Raises:
        ConfigError: it is another one.
    """
    found = build(node, where)
    if not _fits(found, kind):
        raise ConfigError(f"{where} must be {_words(kind)}; got {brief(repr(found))}")
    return found


def _build_entry(node: dict[str, Any], where: str, name: str) -> Any:
    value = node[name]
    if isinstance(value, list):
        return [build(x, typed_key(node, where, f"{name}[{i}]")) for i, x in enumerate(value)]
    return build(value, typed_key(node, where, name))


def _check_arguments(target: Any, arguments: Mapping[str, Any], keys: Mapping[str, str], where: str, is_partial: bool) -> None:
    """Check names and types of a constructor's arguments.

    Args:
        keys: the key to type for each argument.
        is_partial: some arguments are given later.
    """
    if not callable(target):
        raise ConfigError(f"{where}: {target!r} is no class and no function")
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _type_hints(target)
    for name, value in arguments.items():
        if name not in parameters and takes_any:
            continue
        if name not in parameters:
            raise ConfigError(f"{where}: unknown key {name!r}{_needed_option(where, name) or nearest(name, parameters)}")
        if name in hints and not _fits(value, hints[name]):
            wanted = _words(hints[name]) + _example(keys[name], parameters[name].default)
            got = "null" if value is None else brief(repr(value))
            raise ConfigError(f"{keys[name]} must be {wanted}; got {got}{_option_hint(keys[name], value)}")
    for name, parameter in parameters.items():
        is_needed = parameter.default is parameter.empty and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_needed and name not in arguments and not is_partial:
            raise ConfigError(f"{where}: {name!r} is missing: give {where}.{name}=...")


def _type_hints(target: Any) -> dict[str, Any]:
    """The annotations of a constructor's arguments; none, where a class from outside rdmm has some that cannot be looked up."""
    # the class of a dataclass: its __init__ has the names of its own module only, not those of the fields that it inherits
    function = target if inspect.isfunction(target) or dataclasses.is_dataclass(target) else target.__init__
    try:
        return get_type_hints(function)
    except Exception:
        if _is_own(f"{target.__module__}."):
            raise
        return {}


def _needed_option(group: str, name: str) -> str:
    options = options_with(group, name)
    return f"; it needs {' or '.join(f'{group}={o}' for o in options)}" if options else ""


def _example(key: str, default: Any) -> str:
    """``, e.g. [40,30,16]`` where a list is wanted: the value in conf/, or else the constructor's default."""
    value = default_value(key) or default
    return f", e.g. [{','.join(map(str, value))}]" if isinstance(value, list | tuple) and value else ""


def _option_hint(key: str, value: Any) -> str:
    """How to choose an option where its name was given as a value."""
    if value not in options_of(key.rpartition(".")[2]):
        return ""
    return f"; to choose an option there, type {option_override(key, value)}" if "." in key else ""


def resolve(name: str, where: str) -> Any:
    """The class or function that ``_target_`` names; earlier names lead to today's (renamed.py).

    Raises:
        ConfigError: its package is not trusted, or cannot be imported, or nothing has the name.
    """
    name = RENAMED.get(name, name)
    if not (name.startswith(ALLOWED) or is_trusted(name)):
        cure = hint(name) or f"; it must begin with {', '.join(ALLOWED)}"
        raise ConfigError(f"{where}: _target_ {name!r} is not allowed{cure}")
    root = str(share())  # an installed wheel keeps networks/ there
    if root not in sys.path:
        sys.path.insert(0, root)
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: there is no {name} ({error})") from error
    except Exception as error:
        if _is_own(name):
            raise
        raise ConfigError(f"{where}: {module} cannot be imported: {_in_short(error)}") from error


def _in_short(error: Exception) -> str:
    """The kind of an error, and the first line of its message."""
    return f"{type(error).__name__}: {brief(next(iter(str(error).splitlines()), ''))}"


def _is_own(name: str) -> bool:
    """Whether a class, by its dotted name, is one of rdmm's."""
    return name.partition(".")[0] in OWN


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation: numbers are finite, null fits only where it is named."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max  # False for NaN
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if origin is tuple and arguments and ... not in arguments:
        return isinstance(value, list | tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin in (collections.abc.Sequence, list, tuple):
        return isinstance(value, list | tuple) and all(_fits(v, a) for a in arguments[:1] for v in value)
    if origin in (collections.abc.Mapping, dict):
        return isinstance(value, dict) and all(_fits(v, a) for a in arguments[1:] for v in value.values())
    if isinstance(hint, typing.TypeVar) or hint is Any:
        return True
    return _is_of_kind(value, origin)


def _is_of_kind(value: Any, kind: Any) -> bool:
    """Whether an object is of a class, has what a protocol names, or can be called."""
    if value is None or isinstance(value, str | int | float | list | dict):
        return False
    if kind is collections.abc.Callable:
        return callable(value)
    if not getattr(kind, "_is_protocol", False):
        return not isinstance(kind, type) or isinstance(value, kind)
    return all(hasattr(value, name) for name in _members(kind))


def _members(protocol: type) -> list[str]:
    """What a protocol names, and the protocols that it extends."""
    parts = [vars(kind) for kind in protocol.__mro__ if getattr(kind, "_is_protocol", False) and kind is not typing.Protocol]
    names = {name for part in parts for name in (*part.get("__annotations__", {}), *(k for k, v in part.items() if callable(v)))}
    return sorted(name for name in names if name == "__call__" or not name.startswith("_"))


WORDS = {
    float: ("a number", "numbers"),
    int: ("a whole number", "whole numbers"),
    bool: ("true or false", "values true or false"),
    str: ("a text", "texts"),
}
"""Words for a type, and for a list of it."""


def _words(hint: Any, plural: bool = False) -> str:
    """A type in plain words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Literal:
        return ("any of " if plural else "one of ") + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a, plural) for a in arguments)
    if origin is collections.abc.Sequence:
        return f"{'lists' if plural else 'a list'} of {_words(arguments[0], plural=True)}"
    if origin is collections.abc.Mapping:
        return "settings by name"
    methods = [name for name in _members(hint) if name != "__call__"] if getattr(hint, "_is_protocol", False) else []
    of = f" whose class has {', '.join(methods)}" if methods else ""
    return WORDS[hint][plural] if hint in WORDS else f"settings with a _target_{of}"
