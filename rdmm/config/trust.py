"""What a configuration from a file may hold."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from rdmm.config.location import share
from rdmm.types import ConfigError


def require_trusted(settings: Any, where: str) -> None:
    """Settings that come from a file may name what conf/ names, and nothing else; references in them are not resolved.

    Raises:
        ConfigError: they hold something else.
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
    found = (re.findall(r"_target_: *([\w.]+)", p.read_text()) for p in (share() / "conf").rglob("*.yaml"))
    return frozenset(t for targets in found for t in targets)


LARGEST_YAML, MOST_ALIASES = 2**20, 100


def require_plain_yaml(folder: Path) -> None:
    """Configuration files of other people are data: small, without tags that make objects, without floods of aliases.

    Raises:
        ConfigError: the first that is not.
    """
    import yaml

    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".yaml", ".yml")):
        if path.stat().st_size > LARGEST_YAML:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes are more than a configuration has ({LARGEST_YAML})")
        aliases = depth = 0
        try:
            for event in yaml.parse(path.read_text(encoding="utf-8-sig")):
                aliases += isinstance(event, yaml.AliasEvent)
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                tag = getattr(event, "tag", None)
                if tag is not None:
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    raise ConfigError(f"{path}: line {line}: the tag {tag!r} is not allowed in a configuration")
                if aliases > MOST_ALIASES or depth > MOST_ALIASES:
                    raise ConfigError(f"{path}: more than {MOST_ALIASES} aliases, or as many levels: not a configuration")
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from error
