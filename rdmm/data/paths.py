"""Paths of data sets: folders that must exist, files that must not lead out of them, names that files can have."""

from __future__ import annotations

import os
from pathlib import Path

from rdmm.types import ConfigError, InputError


def require_folder(path: str | os.PathLike[str], part: str = "") -> Path:
    """A folder of a data set.

    Raises:
        InputError: it is not there.
    """
    out = Path(path).expanduser() / part
    if not out.is_dir():
        raise InputError(f"no data at {path}/{part}: set RDMM_DATA to the folder that holds {part or 'them'}")
    return out


def require_inside(root: Path, path: Path, where: str) -> Path:
    """``path``, or ConfigError where it leads out of the data set's folder (a link, or ..)."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{where}: {path} leads out of {root}; put the file into the data set's folder, or name another root")
    return path


def resolve_below(root: Path, name: str, where: str, absolute: bool = False) -> Path:
    """A path below ``root``, links and .. included; where ``absolute`` ones are allowed, they say themselves where they lead."""
    if "\0" in name:
        raise ConfigError(f"{where}: {name!r} is no path")
    return Path(name) if absolute and Path(name).is_absolute() else require_inside(root, root / name, where)


def require_plain_name(name: str, where: str) -> str:
    """A name that files can be called by."""
    if not name or name in (".", "..") or any(c in name for c in "/\\\0\n\r") or name.startswith("-"):
        raise ConfigError(f"{where}: {name!r} cannot name a result: it is empty, a path, or begins with -")
    return name
