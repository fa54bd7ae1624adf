"""Checks of configurations that come from other people's files."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from rdmm.config.location import share
from rdmm.types import ConfigError


def require_trusted(settings: Any, where: str) -> None:
    """Check settings from a file: they may name the classes that conf/ names, and hold no references.

    Args:
        where: the file, for the error.

    Raises:
        ConfigError: they name another class, or hold a reference.
    """
    if isinstance(settings, dict):
        target = settings.get("_target_")
        if target is not None and target not in conf_targets():
            raise ConfigError(f"{where}: _target_ {target!r} is not allowed: no file of conf/ names it")
        for key, value in settings.items():
            require_trusted(key, where)
            require_trusted(value, where)
    elif isinstance(settings, list):
        for value in settings:
            require_trusted(value, where)
    elif isinstance(settings, str) and "${" in settings:
        raise ConfigError(f"{where}: its settings hold the reference {settings!r}; references of other people's files are not resolved")


@lru_cache
def conf_targets() -> frozenset[str]:
    """Every ``_target_`` in conf/."""
    found = (re.findall(r"_target_: *([\w.]+)", p.read_text()) for p in (share() / "conf").rglob("*.yaml"))
    return frozenset(t for targets in found for t in targets)


MAX_YAML_BYTES, MAX_ALIASES = 2**20, 100
"""Largest configuration file; most aliases and levels in it. More could fill the memory."""


def require_plain_yaml(folder: Path) -> None:
    """Check that the YAML files of a folder are plain data: small, without tags that make objects, with few aliases.

    Raises:
        ConfigError: a file is not; the first one is named.
    """
    import yaml

    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".yaml", ".yml")):
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes; a configuration has at most {MAX_YAML_BYTES}")
        aliases = depth = 0
        try:
            for event in yaml.parse(path.read_text(encoding="utf-8-sig")):
                aliases += isinstance(event, yaml.AliasEvent)
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                tag = getattr(event, "tag", None)
                if tag is not None:
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    raise ConfigError(f"{path}: line {line}: the tag {tag!r} is not allowed in a configuration")
                if aliases > MAX_ALIASES or depth > MAX_ALIASES:
                    raise ConfigError(f"{path}: more than {MAX_ALIASES} aliases or levels, so it is no configuration")
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from error
