"""YAML and KEY=VALUE to one configuration, by Hydra."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rdmm.config.explain import Known, explain, explain_key, flatten, groups, override_key
from rdmm.config.location import model_path, share
from rdmm.config.node import with_origins
from rdmm.config.renamed import current
from rdmm.config.trust import require_trusted
from rdmm.io.models import read_model
from rdmm.types import ConfigError, nearest


def compose(overrides: Sequence[str] = (), name: str = "register") -> dict[str, Any]:
    """The configuration as plain data, every reference resolved.

    Args:
        overrides: Hydra's KEY=VALUE.
        name: of the configuration in conf/: ``register``, ``shapes``, ``train`` or ``eval``.

    Raises:
        ConfigError: an unknown key or option (with the nearest known one), or a value that cannot be parsed.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    check_overrides(overrides, name)
    expanded = [text for override in overrides for text in _expand_sum(override)]
    try:
        try:
            raw = OmegaConf.to_container(_compose_by_hydra(expanded, name))
        except (ValueError, TypeError) as error:  # Hydra's own, of ~group=1 and group=[[]]
            raise ConfigError(f"{' '.join(overrides)}: {error}") from error
        if name == "register":
            raw = _with_model(raw, overrides)
        plain = current(OmegaConf.to_container(OmegaConf.create(raw), resolve=True))  # earlier names may have been typed
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(str(error), overrides, _known(overrides, name))) from error
    assert isinstance(plain, dict)
    if name in ("register", "shapes"):  # the study of an experiment is for eval.py
        plain.pop("study", None)
    settings: dict[str, Any] = with_origins(plain, raw, raw)
    return settings


def _compose_by_hydra(overrides: Sequence[str], name: str, **options: Any) -> Any:
    """Hydra's composition of conf/ and overrides, references unresolved."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(share() / "conf")):
        return hydra.compose(name, overrides=list(overrides), **options)


MODEL_SETTINGS = ("dynamics", "smoother", "intensity")
"""Settings that a network was trained for. Its model file holds them, and they cannot be overridden."""


def quoted(text: str) -> str:
    """A text as the value of an override; any character may be in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def model_settings(file: str | None) -> Mapping[str, Any]:
    """The settings of a model file (None: the bundled one).

    Raises:
        ConfigError: they name a class that no file of conf/ names (require_trusted).
    """
    path = model_path(file)
    settings = current(read_model(path).settings)
    require_trusted(settings, path)
    return dict(settings)


def _with_model(config: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration with the settings of the model file that it names.

    Overrides win over the model's settings, except for MODEL_SETTINGS.

    Raises:
        ConfigError: an override is one of MODEL_SETTINGS, or the model's settings hold references.
    """
    typed = {override_key(o).split(".")[0] for o in overrides}
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


def _expand_sum(override: str) -> list[str]:
    """``similarity=[a,b]`` as a sum of the options a and b, each with the weight 1; any other override as it is."""
    match = re.fullmatch(r"similarity=\[(.*)\]", override)
    if match is None:
        return [override]
    terms = [t.strip(" \"'") for t in match.group(1).split(",")]
    if len(set(terms)) < len(terms) or not all(terms):
        raise ConfigError(f"{override}: similarity must be an option or a list of different ones, e.g. similarity=[lncc,sinkhorn]")
    parts = [(f"+similarity@similarity.terms.{t}={t}", f"+similarity.weights.{t}=1.0") for t in terms]
    return ["similarity=sum", *(text for part in parts for text in part)]


def check_overrides(overrides: Sequence[str], name: str = "register") -> None:
    """Check the form of overrides and the first part of their keys, without composing.

    Raises:
        ConfigError: an override is not KEY=VALUE, its first key is unknown, or its value holds a reference.
    """
    top_level = _top_level_keys(name) if overrides else frozenset()
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(f"{text!r}: settings are KEY=VALUE, e.g. dynamics=lddmm{nearest(text, _known((), name).keys)}")
        key = override_key(text)
        if key.split(".")[0] not in top_level:
            raise ConfigError(explain_key(key, _known((), name), overrides))
        if "${" in text.split("=", 1)[-1]:
            raise ConfigError(f"{text!r}: references in values are not resolved; write the value itself")


def _top_level_keys(name: str) -> frozenset[str]:
    """The groups, the keys of conf/NAME.yaml and of the file that it extends, and those that options add at the top level."""
    conf = share() / "conf"
    text = (conf / f"{name}.yaml").read_text()
    extended = [conf / f"{base}.yaml" for base in re.findall(r"^  - (\w+)$", text, re.MULTILINE) if base != "_self_"]
    texts = [text, *(p.read_text() for p in extended)]
    texts += [t for t in (p.read_text() for p in conf.glob("*/*.yaml")) if t.startswith("# @package _global_")]
    return frozenset([*groups(), *(key for t in texts for key in re.findall(r"^(\w+):", t, re.MULTILINE))])


def _known(overrides: Sequence[str], name: str) -> Known:
    """What can be typed beside the options that ``overrides`` choose. Composes anew, so call it for an error only."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    default = _compose_by_hydra((), name, return_hydra_config=True)
    try:
        chosen = _compose_by_hydra([o for o in overrides if override_key(o) in groups()], name, return_hydra_config=True)
    except (HydraException, ValueError, TypeError):
        chosen = default
    plain: Any = OmegaConf.to_container(chosen)
    plain.pop("hydra")
    return Known([*groups(), *flatten(plain)], dict(default.hydra.runtime.choices), dict(chosen.hydra.runtime.choices))
