"""Checks of configurations that come from other people's files."""

from __future__ import annotations

import glob
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from rdmm.config.location import share
from rdmm.config.plugins import hint, is_trusted
from rdmm.config.renamed import current
from rdmm.types import ConfigError

HARMLESS_REFERENCE = re.compile(r"\$\{(?:\.*\w[\w.]*|(?:hydra|now):[^${}]*)\}")
"""A reference to a key, to a fact of Hydra's run, or to the time."""


def require_trusted(settings: Any, where: str, *, composed: bool = False) -> Any:
    """Check settings from a file: they may name the classes that conf/ names, and those of packages that the user trusts (plugins.py);
    they hold no references.

    Whoever builds or composes what a file holds asks here first: model files, run.json, folders of configurations.

    Args:
        settings: plain data; earlier names of classes (renamed.py) count as today's.
        where: the file, for the error.
        composed: they are a YAML file that Hydra composes. It may refer to keys (``${key}``, ``${hydra:...}``, ``${now:...}``), but to
            nothing else, such as the environment; and its texts, which may be KEY=VALUE, name no classes.

    Returns:
        the settings, with today's names of classes.

    Raises:
        ConfigError: they name another class, hold a reference, or are nested too deeply.
    """
    try:
        today = current(settings)
        _check(today, where, composed)
    except RecursionError:
        raise ConfigError(f"{where}: its settings are nested too deeply to be settings of rdmm") from None
    return today


def _check(node: Any, where: str, composed: bool) -> None:
    if isinstance(node, dict):
        target = node.get("_target_")
        if "_target_" in node and not (isinstance(target, str) and (target in conf_targets() or is_trusted(target))):
            raise ConfigError(
                f"{where}: _target_ {target!r} is not allowed: no file of conf/ names it{hint(str(target))} (docs/extending.md)"
            )
        for key, value in node.items():
            if key != "_target_":
                _check(key, where, composed)
                _check(value, where, composed)
    elif isinstance(node, list):
        for value in node:
            _check(value, where, composed)
    elif isinstance(node, str):
        left = HARMLESS_REFERENCE.sub("", node) if composed else node
        if "${" in left:
            raise ConfigError(f"{where}: its settings hold the reference {node!r}; references of other people's files are not resolved")
        if composed and "_target_" in left:
            raise ConfigError(f"{where}: the text {node!r} names a class; only an entry _target_ may, with a class that conf/ names")
        if composed and "hydra" in left:
            raise ConfigError(f"{where}: {node!r} sets Hydra itself; do that on the command line, e.g. hydra.run.dir=FOLDER")


def foreign_targets(settings: Any) -> list[str]:
    """The classes that settings name and conf/ does not, sorted."""
    nodes = list(settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ())
    own = [str(settings["_target_"])] if isinstance(settings, dict) and "_target_" in settings else []
    return sorted({*(t for t in own if t not in conf_targets()), *(t for node in nodes for t in foreign_targets(node))})


@lru_cache
def conf_targets() -> frozenset[str]:
    """Every ``_target_`` in conf/."""
    found = (re.findall(r"_target_: *([\w.]+)", p.read_text()) for p in (share() / "conf").rglob("*.yaml"))
    return frozenset(t for targets in found for t in targets)


MAX_YAML_BYTES, MAX_ALIASES = 2**20, 100
"""Largest configuration file; most aliases and levels in it. More could fill the memory."""


def require_trusted_yaml(folder: Path) -> None:
    """Check a folder of configurations besides conf/ (``--config-dir``): its YAML files are plain data that can be trusted.

    Raises:
        ConfigError: a file is too large, has tags or many aliases, names a class that conf/ does not, refers to the environment, or sets
            Hydra itself, whose settings make objects of their own. The first file is named.
    """
    paths = (Path(folder, name) for name in glob.glob("**", root_dir=folder, recursive=True, include_hidden=True))
    for path in sorted(p for p in paths if p.suffix in (".yaml", ".yml") and p.is_file()):
        text, content = _read_plain_yaml(path)
        places = [*path.relative_to(folder).parts, *re.findall(r"@package(.*)", text)]  # of its settings in the configuration
        require_trusted([places, content], str(path), composed=True)


def _read_plain_yaml(path: Path) -> tuple[str, Any]:
    """The text of a YAML file and what it holds, if it is small plain data without tags that make objects and with few aliases."""
    if path.stat().st_size > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes; a configuration has at most {MAX_YAML_BYTES}")
    aliases = depth = 0
    try:
        text = path.read_text(encoding="utf-8-sig")
        for event in yaml.parse(text):
            aliases += isinstance(event, yaml.AliasEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            tag = getattr(event, "tag", None)
            if tag is not None:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise ConfigError(f"{path}: line {line}: the tag {tag!r} is not allowed in a configuration")
            if aliases > MAX_ALIASES or depth > MAX_ALIASES:
                raise ConfigError(f"{path}: more than {MAX_ALIASES} aliases or levels, so it is no configuration")
        return text, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from error
