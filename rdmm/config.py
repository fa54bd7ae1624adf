"""YAML and KEY=VALUE to objects. The only module that knows Hydra."""

from __future__ import annotations

import collections.abc
import importlib
import importlib.resources
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rdmm.types import ConfigError, RdmmError, nearest

ALLOWED = ("rdmm.", "networks.", "train.", "eval.", "torch.optim.", "monai.networks.nets.")


def share() -> Path:
    """The folder that holds conf/ and networks/: the checkout, or ``rdmm/_share`` of an installed wheel."""
    package = Path(__file__).resolve().parent
    return package / "_share" if (package / "_share" / "conf").is_dir() else package.parent


def compose(overrides: Sequence[str] = (), name: str = "register") -> dict[str, Any]:
    """The configuration as plain data, every reference resolved.

    Args:
        overrides: Hydra's KEY=VALUE.

    Raises:
        ConfigError: an unknown key or option (with the nearest known one), or a value that cannot be parsed.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    check(overrides, name)
    expanded = [text for override in overrides for text in _sum(override)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base=None, config_dir=str(share() / "conf")):
            try:
                config = hydra_compose(name, overrides=expanded)
            except (ValueError, TypeError) as error:  # Hydra's own, of ~group=1 and group=[[]]
                raise ConfigError(f"{' '.join(overrides)}: {error}") from error
            if name == "register":
                config = OmegaConf.create(_with_model(OmegaConf.to_container(config), overrides))
            plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explained(str(error), overrides, name)) from error
    assert isinstance(plain, dict)
    if name in ("register", "shapes"):  # what eval.py compares; an experiment's settings are the rest of it
        plain.pop("study", None)
    return {str(k): v for k, v in plain.items()}


BROUGHT = ("dynamics", "smoother", "intensity")
"""Settings that a network was trained for, and that its model file brings along."""


def quoted(text: str) -> str:
    """A text as the value of an override, whatever it holds."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _with_model(config: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration with the settings of the model file that it names: they give way to overrides, but for BROUGHT.

    Raises:
        ConfigError: an override is of what the model brings along, or the model's settings hold references.
    """
    typed = {o.split("=", 1)[0].lstrip("+~").split(".")[0].split("@")[0] for o in overrides}
    learned = "networks.model.predictor"
    if config["weights"] is None and config["initializer"]["_target_"] != learned:
        return dict(config)
    model = _resolve("networks.model.settings", "weights")(config["weights"])
    clash = [k for k in BROUGHT if k in typed]
    if clash:
        raise ConfigError(f"{clash[0]}: the model brings its own {clash[0]}, which it was trained for; leave {clash[0]} out")
    config |= {k: v for k, v in model.get("register", {}).items() if k not in typed}
    if model.get("predictor") and "initializer" not in typed:
        config["initializer"] = {"_target_": learned, "file": "${weights}"}
    if model.get("affine") and "affine" not in typed:
        config["affine"] = {"_target_": "networks.model.affine", "file": "${weights}"}
    if config["initializer"]["_target_"] == learned:
        if "optimizer" not in typed:
            config["optimizer"] = {"_target_": "rdmm.optimise.NoOptimiser"}
        if "stages" not in typed:
            steps = {"steps": model.get("steps", 1)}
            config["stages"] = {"_target_": "rdmm.stages.learned", "affine": "${affine}", "deform": "${deform}", **steps}
    return dict(config)


def require_trusted(settings: Any, where: str) -> None:
    """Settings that come from a file may name what conf/ names, and nothing else; references in them are not resolved.

    Raises:
        ConfigError: they hold something else.
    """
    if isinstance(settings, dict):
        target = settings.get("_target_")
        if target is not None and target not in _conf_targets():
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
def _conf_targets() -> frozenset[str]:
    found = (re.findall(r"_target_: *([\w.]+)", p.read_text()) for p in (share() / "conf").rglob("*.yaml"))
    return frozenset(t for targets in found for t in targets)


def _sum(override: str) -> list[str]:
    """``similarity=[a,b]`` as a sum of the options a and b, each with the weight 1; any other override as it is."""
    match = re.fullmatch(r"similarity=\[(.*)\]", override)
    if match is None:
        return [override]
    terms = [t.strip(" \"'") for t in match.group(1).split(",")]
    if len(set(terms)) < len(terms) or not all(terms):
        raise ConfigError(f"{override}: a list of different similarities is wanted, e.g. similarity=[lncc,sinkhorn]")
    parts = [(f"+similarity@similarity.terms.{t}={t}", f"+similarity.weights.{t}=1.0") for t in terms]
    return ["similarity=sum", *(text for part in parts for text in part)]


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


def check(overrides: Sequence[str], name: str = "register") -> None:
    """Raises ConfigError for an override that is no KEY=VALUE, or whose first key is unknown."""
    known = _known_keys(name) if overrides else []
    for text in overrides:
        _check_override(text, known)


def _known_keys(name: str) -> list[str]:
    """Dotted keys of the composed defaults, and the groups."""
    conf = share() / "conf"
    groups = [p.relative_to(conf).as_posix() for p in conf.rglob("*") if p.is_dir()]
    return groups + list(_flatten(compose((), name)))


def _flatten(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "_target_":
                yield f"{prefix}{key}"
                yield from _flatten(value, f"{prefix}{key}.")


def _check_override(text: str, known: list[str]) -> None:
    if "=" not in text and not text.startswith("~"):
        raise ConfigError(f"{text!r}: settings are KEY=VALUE, e.g. dynamics=lddmm{nearest(text, known)}")
    key = text.split("=", 1)[0].lstrip("+~")
    if "@" in key:
        key = key.split("@", 1)[0]
    root = key.split(".")[0]
    if root not in known:
        raise ConfigError(f"unknown key {key!r}{nearest(key, known)}")
    if "${" in text.split("=", 1)[-1]:
        raise ConfigError(f"{text!r}: references in values are not resolved; write the value itself")


def _explained(message: str, overrides: Sequence[str], name: str) -> str:
    """Hydra's message in one line, with the nearest option or key."""
    first = message.strip().splitlines()[0]
    missing = re.search(r"Could not find '([^']+)'", message)
    if missing:
        group, _, option = missing.group(1).rpartition("/")
        options = sorted(p.stem for p in (share() / "conf" / group).glob("*.yaml"))
        return f"{group}={option}: no such option{nearest(option, options)}; there are {', '.join(options)}"
    unknown = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", message)
    if unknown:
        key = unknown.group(2) or unknown.group(1)
        dotted = next((o.split("=")[0] for o in overrides if o.split("=")[0].endswith(key)), key)
        known = _known_keys(name)
        siblings = [k for k in known if k.rpartition(".")[0] == dotted.rpartition(".")[0]]
        return f"unknown key {dotted!r}{nearest(dotted, siblings) or nearest(dotted, known)}"
    return first


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
    target = _resolve(str(node["_target_"]), where)
    wanted = next((k for k, v in node.items() if v == "???"), None)
    if wanted is not None:
        raise ConfigError(f"{f'{where}.{wanted}'.lstrip('.')} is not set: give {f'{where}.{wanted}'.lstrip('.')}=...")
    arguments = {k: build(v, f"{where}.{k}".lstrip(".")) for k, v in node.items() if k != "_target_"}
    parameters = inspect.signature(target).parameters
    hints = get_type_hints(target if inspect.isfunction(target) else target.__init__)
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


def _resolve(name: str, where: str) -> Any:
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
