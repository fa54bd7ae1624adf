"""The arguments of ``rdmm.register`` as Python gives them: images of any library, arrays, settings as keywords and dictionaries."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from rdmm.config.compose import quoted
from rdmm.data.given import Also, read_also
from rdmm.data.inputs import IMAGE_INPUTS
from rdmm.io.exchange import image_source, is_array
from rdmm.types import ConfigError, option

log = logging.getLogger(__name__)


def to_overrides(keys: Mapping[str, Any]) -> list[str]:
    """KEY=VALUE texts from keyword arguments. In names, ``__`` stands for a dot; a dictionary holds the entries of its key.

    Raises:
        ConfigError: a value that no setting can have.
    """
    return [f"{key}={_value_text(key, value)}" for key, value in _entries({k.replace("__", "."): v for k, v in keys.items()})]


def _entries(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested dictionaries, with their values."""
    for name, value in node.items():
        if not isinstance(name, str):
            raise ConfigError(f"{prefix.rstrip('.')}: the keys of a dictionary of settings are texts; got {name!r}")
        is_group = not prefix and "." not in name and "__" not in name
        if isinstance(value, Mapping) and (is_group or not _is_by_label(value)):
            yield from _entries(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _is_by_label(node: Mapping[Any, Any]) -> bool:
    """Whether a dictionary has an entry for a label: it is one value, whose keys are no settings."""
    return any(isinstance(name, int) and not isinstance(name, bool) for name in node)


def _value_text(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_value_text(key, entry)}" for name, entry in value.items()) + "}"
    if key == "weights" and isinstance(value, str | os.PathLike):
        return quoted(os.fspath(value))
    try:
        return value if isinstance(value, str) else json.dumps(value, default=lambda x: x.tolist())  # of numpy and torch
    except (TypeError, ValueError, AttributeError, RecursionError):
        raise ConfigError(f"{key} must be a number, a text, a list or a dictionary; got {type(value).__name__}") from None


def split_affine(affine: Any) -> tuple[dict[str, Any], Any]:
    """``affine=`` as a setting, if it is a text or a dictionary, and as the matrix of arrays, if it is anything else."""
    if affine is None:
        return {}, None
    return ({"affine": affine}, None) if isinstance(affine, str | Mapping) else ({}, affine)


def read_arguments(given: Mapping[str, Any], places: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs by name, with each image as a path, a nibabel image or an ``Image``.

    Args:
        given: all inputs. An array of labels, of a mask or of regions has the voxels of its image.
        places: ``spacing`` and ``affine`` of arrays, and ``moving_spacing`` and ``moving_affine`` where those of the moving image differ.

    Raises:
        ConfigError: a place that does not fit an array, or that no array has.
        InputError: a value is no image, or the shape of an array is not that of its image.
    """
    read = dict(given)
    of_moving = {"spacing": places["moving_spacing"], "affine": places["moving_affine"]}
    shared = {"spacing": places["spacing"], "affine": places["affine"]}
    moves = any(value is not None for value in of_moving.values())
    _require_arrays(shared, is_array(given["fixed"]) or (is_array(given["moving"]) and not moves))
    _require_arrays({f"moving_{k}": v for k, v in of_moving.items()}, is_array(given["moving"]))
    for role, place in (("fixed", shared), ("moving", of_moving if moves else shared)):
        if is_array(given[role]) and all(value is None for value in place.values()):
            log.warning("%s: an array without %s: its voxels are taken as 1 mm along each axis", role, option("spacing", ""))
            place = {"spacing": (1.0,) * min(given[role].ndim, 3)}
        read[role] = image_source(given[role], role, **place)
    for name in IMAGE_INPUTS:
        if name not in ("fixed", "moving") and given.get(name) is not None:
            read[name] = image_source(given[name], name, like=read["fixed" if name.startswith("fixed") else "moving"])
    read["also"] = []
    for k, pair in enumerate(read_also(given.get("also")), 2):
        fixed, moving = (image_source(getattr(pair, role), f"{role}_{k}", like=read[role]) for role in ("fixed", "moving"))
        read["also"].append(Also(fixed, moving, pair.weight))
    return read


def _require_arrays(places: Mapping[str, Any], there: bool) -> None:
    """Raise ConfigError for a place of arrays, of which there is none."""
    for name, value in places.items():
        if value is not None and not there:
            raise ConfigError(f"{name} has no effect: it places an array, and the image is none; leave it out")
