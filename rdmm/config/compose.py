"""YAML and KEY=VALUE to one configuration, by Hydra."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rdmm.config.explain import (
    Known,
    brief,
    explain,
    explain_key,
    explain_several,
    fitting_options,
    flatten,
    groups,
    options_of,
    override_key,
)
from rdmm.config.location import config_folders, further_folders, model_path, share
from rdmm.config.node import Node, with_origins
from rdmm.config.renamed import current
from rdmm.config.trust import require_trusted
from rdmm.io.models import read_model
from rdmm.types import MAX_FLOAT32, ConfigError, InputError, nearest


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
    from yaml import YAMLError

    check_overrides(overrides, name)
    expanded = [text for override in overrides for text in expand(override)]
    try:
        try:
            raw = OmegaConf.to_container(_compose_by_hydra(expanded, name))
        except (ValueError, TypeError, OverflowError) as error:  # Hydra's own, of ~group=1 and group=[[]]
            raise ConfigError(f"{brief(' '.join(overrides))}: {brief(error)}") from error
        _require_nodes(raw, overrides, name)
        if name == "register":
            raw = _with_affine_similarity(_with_images(_with_model(raw, overrides), overrides), overrides)
        plain = current(OmegaConf.to_container(OmegaConf.create(raw), resolve=True))  # earlier names may have been typed
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(str(error), overrides, _known(overrides, name))) from error
    except RecursionError:
        raise ConfigError(f"{brief(max(overrides, key=len, default=name))}: nested too deeply; give plain values and lists") from None
    except YAMLError as error:
        raise ConfigError(f"{brief(' '.join(overrides))}: a file of conf/ is not YAML ({brief(' '.join(str(error).split()))})") from error
    assert isinstance(plain, dict)
    _require_finite(plain)
    if name in ("register", "shapes"):  # the study of an experiment is for eval.py
        plain.pop("study", None)
    settings: dict[str, Any] = with_origins(plain, raw, raw)
    return settings


def changed_settings(config: Mapping[str, Any], name: str = "register") -> dict[str, Any]:
    """The dotted keys of a configuration whose values differ from those by default; a class goes by the key of its entries.

    Copies are left out: ``dynamics.smoother.sigmas``, which follows ``smoother.sigmas``.
    """
    composed = compose((), name)
    default, references = dict(_leaves(composed)), dict(_references(composed))
    found = {key: value for key, value in _leaves(config) if default.get(key, ...) != value}
    copies = {key: [origin + key[len(r) :] for r, origin in references.items() if f"{key}.".startswith(f"{r}.")] for key in found}
    return {
        key.removesuffix("._target_"): value
        for key, value in found.items()
        if all(found.get(origin, ...) != value for origin in copies[key])
    }


def _references(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys of a composed configuration that are references, each with the key that it refers to."""
    if isinstance(node, Node):
        for key, origin in node.origins.items():
            yield f"{prefix}{key}", origin
        for key, value in node.items():
            yield from _references(value, f"{prefix}{key}.")


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values, without the copies of settings below ``deform`` and ``stages``."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value and prefix + key != "deform":
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "deform" and not (prefix == "stages." and isinstance(value, list)):
            yield prefix + key, value


def _require_nodes(raw: Any, overrides: Sequence[str], name: str) -> None:
    """Raise ConfigError if a node that has entries by default was replaced by a plain value or removed."""
    nodes = {*groups(), *(key for key, value in _entries(name).items() if isinstance(value, dict) and value)} - {"experiment", "hydra"}
    for key in sorted(nodes & {override_key(o) for o in overrides}):
        if "/" not in key and not isinstance(raw.get(key), dict):
            got = "null" if raw.get(key) is None else brief(raw[key])
            raise ConfigError(f"{key} must keep its entries; got {got}: leave it out, or set {key}.KEY=VALUE")


def _require_finite(settings: Any) -> None:
    """Raise ConfigError for a number that float32 cannot hold: no setting can be. A value that others refer to goes by its own key."""
    found = sorted(_not_finite(settings, ""), key=lambda item: item[0].count("."))
    if found:
        raise ConfigError(f"{found[0][0]} must be a finite number, at most {MAX_FLOAT32:g} in size; got {brief(found[0][1])}")


def _not_finite(node: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _not_finite(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _not_finite(value, f"{key}[{i}]")
    elif isinstance(node, int | float) and not abs(node) <= MAX_FLOAT32:
        yield key, node


def _compose_by_hydra(overrides: Sequence[str], name: str, **options: Any) -> Any:
    """Hydra's composition of conf/ and overrides, references unresolved."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(share() / "conf")):
        searched = ",".join(quoted(f"file://{folder.resolve()}") for folder in further_folders())
        return hydra.compose(name, overrides=[*overrides, *([f"hydra.searchpath=[{searched}]"] if searched else [])], **options)


MODEL_KEYS = ("dynamics", "smoother", "integrator", "intensity", "similarity", "similarity_weight", "barrier", "penalty", "free_weights")
"""Settings of a registration that a model file holds."""

MODEL_SETTINGS = ("dynamics", "smoother", "intensity")
"""Settings that a network was trained for. Its model file holds them, and they cannot be overridden."""


def quoted(text: str) -> str:
    """A text as the value of an override; any character may be in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def model_settings(file: str | None) -> Mapping[str, Any]:
    """The settings of a model file (None: the bundled one).

    Raises:
        ConfigError: they name a class that no file of conf/ names (require_trusted).
        InputError: the file is no model, or sets what no model does.
    """
    path = model_path(file)
    settings: dict[str, Any] = require_trusted(read_model(path).settings, path)
    unknown = sorted(set(settings.get("register", {})) - set(MODEL_KEYS))
    if unknown:
        raise InputError(f"{path}: a model cannot set {unknown[0]!r} of a registration; it holds {', '.join(MODEL_KEYS)}")
    return settings


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


def _with_images(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration; label maps are images in it if a similarity of images, or an experiment, was chosen."""
    typed = {override_key(o) for o in overrides}
    chosen = any(k.split(".")[0] in ("similarity", "experiment") or k.startswith("affine.similarity") for k in typed)
    return config | ({"labels_as_images": True} if chosen and "labels_as_images" not in typed else {})


MULTIMODAL = ("rdmm.similarity.NMI", "rdmm.similarity.MIND")
"""Similarities that drive the affine stage, too, if they are chosen."""


def _with_affine_similarity(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration; a similarity of MULTIMODAL is that of the optimized affine stage, too, unless that was typed."""
    is_typed = any("affine.similarity" in o for o in overrides)
    affine, similarity = (
        config[k] if isinstance(config[k], dict) else {} for k in ("affine", "similarity")
    )  # a model file may hold anything
    if not is_typed and affine.get("_target_") == "rdmm.stages.AffineOpt" and similarity.get("_target_") in MULTIMODAL:
        affine["similarity"] = "${similarity}"
    return config


def expand(override: str) -> list[str]:
    """A typed override as Hydra reads it: a sum of similarities in its parts, options in lower case, a name with {fields} in quotes, and
    entries of a study that may be new."""
    return [_as_entries(_quote_fields(_in_lower_case(_as_nested_option(text)))) for text in _expand_sum(override)]


ENTRIES = re.compile(r"\+{0,2}study\.(?:data|methods|settings|families|style\.names)(?:\.\w+)?=")
"""Mappings of a study, whose names are the user's own."""

SETTING = re.compile(r"""(?<=[\[,\s])[~+]{0,2}[\w./]+=[^\s,'"\[\]{}]+(?=\s*[,\]])""")
"""KEY=VALUE in a list."""


def _as_entries(override: str) -> str:
    """``study.methods.mine=[dynamics=svf]`` as Hydra adds an entry, with quotes where it wants them; any other override as it is."""
    if not ENTRIES.match(override):
        return override
    return "++" + SETTING.sub(lambda match: quoted(match.group()), override.lstrip("+"))


def _as_nested_option(override: str) -> str:
    """``affine.similarity=nmi`` as Hydra names an option there; any other override as it is."""
    key, _, value = override.partition("=")
    is_option = key == "affine.similarity" and value.lower() in options_of("similarity")
    return f"+similarity@{key}={value.lower()}" if is_option else override


def _in_lower_case(override: str) -> str:
    """``similarity=LNCC`` as ``similarity=lncc``; any other override as it is."""
    key, _, value = override.partition("=")
    is_option = key in groups() and value not in options_of(key) and value.lower() in options_of(key)
    return f"{key}={value.lower()}" if is_option else override


FIELDS = re.compile(r"""(?:[^\s,:'"\[\]{}]*(?<!\$){\w+})+[^\s,:'"\[\]{}]*(?: +[^\s,:'"\[\]{}]+)*""")
"""A file's name with fields in braces, e.g. {subject}_{time}.nii.gz. In Hydra's grammar, braces without a colon have no meaning."""


def _quote_fields(override: str) -> str:
    key, equals, value = override.partition("=")
    return override if "'" in value or '"' in value else f"{key}{equals}{FIELDS.sub(lambda match: quoted(match.group()), value)}"


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
        if "${" in text:
            raise ConfigError(f"{text!r}: references are not resolved; write the value itself")
        if key in groups() and not text.startswith("~"):
            _require_option_names(key, text.partition("=")[2], name)


def is_setting(key: str, name: str = "register") -> bool:
    """Whether the first part of a key is that of a setting."""
    return key.split(".")[0] in _top_level_keys(name)


def _require_option_names(group: str, value: str, name: str) -> None:
    """Check that an option of a group is a name: a path would load any YAML file, and resolve what it refers to."""
    if re.fullmatch(r"[\w ]+(,[\w ]+)+", value):
        raise ConfigError(explain_several(group, value, name))
    found = NO_OPTION_NAME.search(value)
    names = re.fullmatch(r"\[(.*)\]", value) if group in LISTED else None
    is_list_or_number = any(re.match(r"[\[\d-]", name.strip()) for name in (names[1].split(",") if names else [value]))
    if found or value == "null" or is_list_or_number:
        wrong = f"an option is a name, without {found.group()!r}" if found else "no option" if value == "null" else "an option is a name"
        entries = "" if group == "experiment" else f"; entries of {group} are set by {group}.KEY=VALUE"
        raise ConfigError(f"{group}={brief(value)}: {wrong}; there are {', '.join(fitting_options(group, name))}{entries}")


LISTED = ("similarity", "logger")
"""Groups of which several options can be chosen: GROUP=[a,b]."""

NO_OPTION_NAME = re.compile(r"[./\\{:]")
"""What the name of an option never holds, but a path or an entry does."""


def _top_level_keys(name: str) -> frozenset[str]:
    """The groups, the keys of conf/NAME.yaml and of the file that it extends, and those that options add at the top level."""
    added = [p.read_text() for folder in config_folders() for p in folder.glob("*/*.yaml")]
    keys = {key for t in added if t.startswith("# @package _global_") for key in re.findall(r"^(\w+):", t, re.MULTILINE)}
    return frozenset([*groups(), *((keys | set(_entries(name))) - {"defaults"})])


def _entries(name: str) -> dict[str, Any]:
    """The entries of conf/NAME.yaml and of the file that it extends, without those of their groups."""
    import yaml

    node = yaml.safe_load((share() / "conf" / f"{name}.yaml").read_text())
    extended = [base for base in node["defaults"] if isinstance(base, str) and base != "_self_"]
    return {k: v for base in extended for k, v in _entries(base).items()} | node


def _known(overrides: Sequence[str], name: str) -> Known:
    """What can be typed beside the options that ``overrides`` choose. Composes anew, so call it for an error only."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    default = _compose_by_hydra((), name, return_hydra_config=True)
    try:
        typed = [text for o in overrides if override_key(o) in groups() for text in expand(o)]
        chosen = _compose_by_hydra(typed, name, return_hydra_config=True)
    except (HydraException, ValueError, TypeError):
        chosen = default
    plain: Any = OmegaConf.to_container(chosen)
    plain.pop("hydra")
    return Known([*groups(), *flatten(plain)], dict(default.hydra.runtime.choices), dict(chosen.hydra.runtime.choices), name)
