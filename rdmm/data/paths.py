"""Checks of paths: folders must exist, files of a data set must lie inside its folder, ids must be usable as file names."""

from __future__ import annotations

import os
from pathlib import Path

from rdmm.types import ConfigError, InputError


def require_folder(path: str | os.PathLike[str], part: str = "") -> Path:
    """The folder ``part`` of a data set at ``path``.

    Raises:
        InputError: it does not exist.
    """
    out = Path(path).expanduser() / part
    if not os.path.isdir(out):
        cure = f"set RDMM_DATA to the folder that contains {part}" if part else "give an existing folder, e.g. data.source.root=FOLDER"
        raise InputError(f"no data at {path}/{part}: there is no such folder; {cure}")
    return out


def require_inside(root: Path, path: Path, where: str) -> Path:
    """``path``; raises ConfigError if it leads out of the folder ``root`` (through a link, or ..)."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise ConfigError(f"{where}: {path} leads out of {root}; put the file into the data set's folder, or name another root")
    return path


def resolve_below(root: Path, name: str, where: str, anywhere: bool = False) -> Path:
    """The path of ``name``, relative to ``root``.

    Args:
        where: the line of the list, for the error message.
        anywhere: accept absolute paths, and paths that lead out of ``root``.

    Raises:
        ConfigError: the path leads out of ``root``.
    """
    try:
        is_path = b"\0" not in os.fsencode(root / name)
    except UnicodeEncodeError:  # half a character of JSON
        is_path = False
    if not is_path:
        raise ConfigError(f"{where}: {os.path.join(root, name)!r} is not a path")
    return root / name if anywhere else require_inside(root, root / name, where)


def require_plain_name(name: str, where: str) -> str:
    """``name``; raises ConfigError if it cannot be used as the name of a file."""
    if not name or name in (".", "..") or any(c in name for c in "/\\\0\n\r") or name.startswith("-"):
        raise ConfigError(f"{where}: {name!r} cannot be the name of a result: it must not be empty, contain / or \\, or start with -")
    return name
