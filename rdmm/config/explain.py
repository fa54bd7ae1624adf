"""Why a key or an option was refused, and what to type instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rdmm.config.location import config_folders, share
from rdmm.types import nearest, option

OWN_OPTIONS = {"affine.init": "init"}
"""Keys that an option of ``rdmm register``, and an argument of the same name in Python, sets."""

ARGUMENTS = (
    *("fixed", "moving", "out", "fixed_labels", "moving_labels", "fixed_mask", "moving_mask", "fixed_keypoints", "moving_keypoints"),
    *("landmarks", "initial", "nan", "volume", "strict", "features", "max_folding", "device", "threads", "seed", "transform", "overwrite"),
    "allow",
)
"""Arguments of a registration that are no settings."""


FOR_SHAPES = re.compile(r"^# For shapes", re.MULTILINE)
"""A comment in the file of an option that does not work with images."""


TRANSFORMS = {("affine", kind): kind for kind in ("translation", "rigid", "similarity", "affine")} | {("dynamics", "none"): "affine"}
"""Options that there are not, and the kind of transform (``--transform``) that is meant."""


@dataclass(frozen=True)
class Known:
    """What can be typed.

    Args:
        keys: groups, and dotted keys of the configuration.
        defaults: the option of each group by default.
        choices: the option of each group as typed.
        program: register, shapes, train or eval.
    """

    keys: Sequence[str]
    defaults: Mapping[str, str | None]
    choices: Mapping[str, str | None]
    program: str = "register"


def explain(message: str, overrides: Sequence[str], known: Known) -> str:
    """Hydra's error message as one line that names the typed key, and the nearest option or key."""
    missing = re.search(r"Could not (?:find|load) '([^']+)'", message)
    if missing:
        group, _, name = missing.group(1).rpartition("/")
        options = fitting_options(group, known.program)
        if kind := TRANSFORMS.get((group, name.lower())):
            return f"{group}={name}: no such option; for that, use {option('transform', kind)}"
        return f"{group}={name}: no such option{nearest(name.lower(), options)}; there are {', '.join(options)}"
    unknown = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", message)
    if unknown:
        key = unknown.group(2) or unknown.group(1)
        typed = [override_key(o) for o in overrides]
        return explain_key(next((k for k in typed if k.endswith(key)), key), known, overrides)
    return f"{brief(' '.join(overrides))}: {brief(message.strip().splitlines()[0])}"


def explain_several(group: str, values: str, program: str) -> str:
    """Why ``GROUP=a,b`` is refused."""
    if group == "similarity":
        return f"similarity={values}: for their sum write similarity=[{values}]"
    if group == "logger":
        return f"logger={values}: for several loggers write logger=[{values}]"
    return f"{group}={values}: {group} is one option, so write one of {', '.join(fitting_options(group, program))}"


def explain_key(key: str, known: Known, overrides: Sequence[str] = ()) -> str:
    """Why ``key`` cannot be set."""
    group, _, name = key.partition(".")
    options = options_with(group, name)
    if options:
        default = known.defaults.get(group)
        needed = [default] if default in options else options
        shown = f"{key} ({option(OWN_OPTIONS[key], '')})" if key in OWN_OPTIONS else key
        return f"{shown} has no effect with {group}={known.choices.get(group)}; it needs {' or '.join(f'{group}={o}' for o in needed)}"
    value = next((o.partition("=")[2] for o in overrides if override_key(o) == key), "OPTION")
    if "/" in key and key.rpartition("/")[2] in groups():
        return f"unknown key {key!r}; to choose an option there, type {option_override(key.replace('/', '.'), value)}"
    if key in groups():
        return f"{key!r} is a group that this configuration does not use"
    if key in known.keys:
        return f"{key} cannot be set here: what holds it was removed or replaced by another setting"
    if "." not in key:
        return f"unknown key {key!r}{_nearest_name(key, known)}"
    siblings = [k for k in known.keys if k.rpartition(".")[0] == key.rpartition(".")[0]]
    return f"unknown key {key!r}{nearest(key, siblings) or nearest(key, known.keys)}"


def _nearest_name(word: str, known: Known) -> str:
    """``" (did you mean 'x'?)"`` for a key, the last part of a key, or an argument that is no setting, or an empty string."""
    names = {k.rpartition(".")[2]: repr(k) for k in sorted(known.keys, key=lambda k: -k.count("."))}
    if known.program in ("register", "shapes"):
        names |= {a: option(a, "") for a in ARGUMENTS}
    close = difflib.get_close_matches(word.replace("-", "_"), names, 1, 0.65)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def brief(value: Any) -> str:
    """A value that was typed, or a message with one, for an error; the middle of a long one is left out."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:150]}...{text[-40:]}"


def override_key(override: str) -> str:
    """The key of KEY=VALUE, without Hydra's prefixes and package."""
    return override.split("=", 1)[0].lstrip("+~").split("@", 1)[0]


def option_override(key: str, option: str) -> str:
    """The override that puts an option of a group at ``key``, whose last part is the group's name."""
    return f"+{key.rpartition('.')[2]}@{key}={option}"


def groups() -> list[str]:
    """The groups of conf/ and of further folders, e.g. ``similarity``, ``data/source``."""
    return sorted({p.relative_to(conf).as_posix() for conf in config_folders() for p in conf.rglob("*") if p.is_dir()})


def options_of(group: str) -> list[str]:
    return sorted({p.stem for conf in config_folders() for p in (conf / group).glob("*.yaml")})


def fitting_options(group: str, program: str) -> list[str]:
    """The options of a group, without those for shapes where images are registered."""
    files = [p for conf in config_folders() for p in (conf / group).glob("*.yaml")]
    return sorted({p.stem for p in files if program != "register" or not FOR_SHAPES.search(p.read_text())})


@lru_cache
def options_with(group: str, name: str) -> list[str]:
    """The options of a group that have the key ``name``."""
    if not name or group not in groups() or group == "experiment":
        return []
    import yaml

    files = sorted((share() / "conf" / group).glob("*.yaml"))
    return [p.stem for p in files if name in flatten(yaml.safe_load(p.read_text()))]


def default_value(key: str) -> Any:
    """The value of ``group.name`` in the option of the group that conf/register.yaml chooses, or None."""
    import yaml

    group, _, name = key.partition(".")
    conf = share() / "conf"
    option = re.search(rf"^  - {re.escape(group)}: (\w+)$", (conf / "register.yaml").read_text(), re.MULTILINE)
    node = yaml.safe_load((conf / group / f"{option.group(1)}.yaml").read_text()) if option else None
    return node.get(name) if isinstance(node, dict) else None


def flatten(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of nested settings; ``_target_`` is left out."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "_target_":
                yield f"{prefix}{key}"
                yield from flatten(value, f"{prefix}{key}.")
