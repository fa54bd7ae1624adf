"""Packages outside rdmm whose classes settings may name: those that the user allows (``--allow``), and installed plug-ins.

A plug-in is an installed package with an entry point of the group ``rdmm.plugins``. The folder ``conf`` of a package of either kind
adds options and experiments, as ``--config-dir`` does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

from rdmm.types import ConfigError, nearest, option

GROUP = "rdmm.plugins"
"""The group of entry points of installed plug-ins; each names its package."""

OWN = ("rdmm", "networks", "train", "eval")
"""Packages of rdmm. Only some of their classes can be named by files, so nobody allows them as a whole."""

LIBRARIES = ("torch.optim", "monai.networks.nets")
"""Modules of other libraries whose classes the user can type without a word. For files of others, they are allowed by their names."""

_allowed: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())


@contextmanager
def allowing(packages: str | Sequence[str]) -> Iterator[None]:
    """Inside the block, settings may name the classes of these packages; files of others (models, run.json), too.

    They are imported from where Python finds them, and from the current folder.

    Raises:
        ConfigError: there is no such package, or it is rdmm's or Python's own.
    """
    names = (packages,) if isinstance(packages, str) else tuple(packages)
    folder = os.getcwd()
    if names and not {folder, ""} & set(sys.path):
        sys.path.append(folder)
    for name in names:
        _require_package(name)
    token = _allowed.set((*_allowed.get(), *names))
    try:
        yield
    finally:
        _allowed.reset(token)


def trusted_packages() -> tuple[str, ...]:
    """The packages of ``allowing``, and the installed plug-ins."""
    return (*_allowed.get(), *_installed(tuple(sys.path)))


def is_trusted(name: str) -> bool:
    """Whether a class, by its dotted name, is of a trusted package."""
    return any(name.startswith(f"{package}.") for package in trusted_packages())


def plugin_folders() -> list[Path]:
    """The folders ``conf`` of the trusted packages."""
    specs = (_find(package) for package in trusted_packages())
    folders = [Path(place, "conf") for spec in specs if spec for place in spec.submodule_search_locations or ()]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def hint(name: str) -> str:
    """What to do where a class is of a package that is not trusted; nothing for rdmm's and Python's own."""
    package = next((library for library in LIBRARIES if name.startswith(f"{library}.")), name.partition(".")[0])
    if package in (*OWN, *sys.stdlib_module_names) or not _is_name(name) or package == name:
        return ""
    return f"; if you trust the package {package}, give {option('allow', package)}"


@lru_cache
def _installed(_: tuple[str, ...]) -> tuple[str, ...]:
    """The packages of the plug-ins that are installed on Python's path."""
    return tuple(sorted({point.module for point in entry_points(group=GROUP)}))


def _require_package(name: str) -> None:
    given = option("allow", name if isinstance(name, str) else str(name))
    if not isinstance(name, str) or not _is_name(name):
        raise ConfigError(f"{given}: give the name of a package as Python imports it, e.g. {option('allow', 'my_package')}")
    if name.partition(".")[0] in (*OWN, *sys.stdlib_module_names):
        raise ConfigError(f"{given}: this package is a part of rdmm or of Python; give one of yours, under another name")
    if _find(name) is None:
        known = {module.name for module in iter_modules()}
        where = "in the current folder, on PYTHONPATH or installed"
        raise ConfigError(f"{given}: there is no package {name} {where}{nearest(name, known, 0.7)}")


def _find(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ImportError, ValueError):  # a parent is no package, or has no file
        return None


def _is_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))
