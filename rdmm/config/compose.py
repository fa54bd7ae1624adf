"""YAML and KEY=VALUE to one configuration, by Hydra."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rdmm.config.location import model_path, share
from rdmm.config.renamed import current
from rdmm.config.trust import require_trusted
from rdmm.io.models import read_model
from rdmm.types import ConfigError, nearest


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

    check_overrides(overrides, name)
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


MODEL_SETTINGS = ("dynamics", "smoother", "intensity")
"""Settings that a network was trained for, and that its model file brings along."""


def quoted(text: str) -> str:
    """A text as the value of an override, whatever it holds."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def model_settings(file: str | None) -> Mapping[str, Any]:
    """The settings of a model file (None: the bundled one), which name nothing that conf/ does not (require_trusted)."""
    path = model_path(file)
    settings = current(read_model(path).settings)
    require_trusted(settings, path)
    return dict(settings)


def _with_model(config: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration with the settings of the model file that it names: they give way to overrides, but for BROUGHT.

    Raises:
        ConfigError: an override is of what the model brings along, or the model's settings hold references.
    """
    typed = {o.split("=", 1)[0].lstrip("+~").split(".")[0].split("@")[0] for o in overrides}
    learned = "networks.model.predictor"
    if config["weights"] is None and config["initializer"]["_target_"] != learned:
        return dict(config)
    model = model_settings(config["weights"])
    clash = [k for k in MODEL_SETTINGS if k in typed]
    if clash:
        raise ConfigError(f"{clash[0]}: the model brings its own {clash[0]}, which it was trained for; leave {clash[0]} out")
    config |= {k: v for k, v in model.get("register", {}).items() if k not in typed}
    if model.get("predictor") and "initializer" not in typed:
        config["initializer"] = {"_target_": learned, "file": "${weights}"}
    if model.get("affine") and "affine" not in typed:
        config["affine"] = {"_target_": "networks.model.affine", "file": "${weights}"}
    if config["initializer"]["_target_"] == learned:
        if "optimizer" not in typed:
            config["optimizer"] = {"_target_": "rdmm.optim.NoOptimizer"}
        if "stages" not in typed:
            steps = {"steps": model.get("steps", 1)}
            config["stages"] = {"_target_": "rdmm.stages.learned", "affine": "${affine}", "deform": "${deform}", **steps}
    return dict(config)


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


def check_overrides(overrides: Sequence[str], name: str = "register") -> None:
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
