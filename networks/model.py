"""Networks, and the model file that holds them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from networks.affine import AffineNetwork
from rdmm.config import build, require_trusted
from rdmm.config.location import model_path
from rdmm.config.plugins import trusted_packages
from rdmm.config.trust import foreign_targets
from rdmm.io.models import Model, read_model, write_model
from rdmm.types import ConfigError, InputError, nearest


class Networks(nn.Module):
    """An affine network, a predictor of initial conditions, or both.

    Args:
        predictor: an Initializer: a pair of images to initial conditions. ``Predictor``, or any other module.
    """

    def __init__(self, affine: AffineNetwork | None = None, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.affine, self.predictor = affine, predictor


def build_networks(settings: Mapping[str, Any]) -> Networks:
    """Untrained networks from the nodes ``affine`` and ``predictor`` of settings.

    Raises:
        ConfigError: a node describes something else.
    """
    parts = {k: build(settings.get(k), k) for k in ("affine", "predictor")}
    for name, kind in (("affine", AffineNetwork), ("predictor", nn.Module)):
        if parts[name] is not None and not isinstance(parts[name], kind):
            wanted = "a torch.nn.Module" if kind is nn.Module else kind.__name__
            raise ConfigError(f"{name}: a network ({wanted}) is wanted, not {type(parts[name]).__name__}")
    return Networks(**parts)


def save(path: str | os.PathLike[str], networks: Networks, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write a model file (rdmm.io.models).

    Args:
        settings: from which ``build_networks`` builds the networks again, and those of the registration that they belong to.
        facts: about the training, e.g. its step and score."""
    write_model(path, Model(networks.state_dict(), settings, facts))


def load(file: str | None) -> Networks:
    """Trained networks in evaluation mode, without gradients. None: the bundled model.

    Raises:
        InputError: the file cannot be used (rdmm.io.models.read_model), or its tensors do not fit its networks.
    """
    path = Path(model_path(file))
    status = path.stat() if path.is_file() else None
    return _load(str(path), (status.st_mtime_ns, status.st_size) if status else None, trusted_packages())


@lru_cache(maxsize=4)
def _load(path: str, _status: tuple[int, int] | None, _trusted: tuple[str, ...]) -> Networks:
    model = read_model(path)
    settings = require_trusted(model.settings, path)
    # sizes only: settings that do not fit the tensors may want any memory. Trusted classes may not know how to be built so
    with nullcontext() if foreign_targets(settings) else torch.device("meta"):
        expected = build_networks(settings).state_dict()
    for name in [*expected, *model.tensors]:
        if name not in model.tensors:
            raise InputError(f"{path}: no tensor {name!r}{nearest(name, model.tensors)}: the file does not fit its own settings")
        if name not in expected:
            raise InputError(f"{path}: tensor {name!r} belongs to no network of its settings{nearest(name, expected)}")
        if model.tensors[name].shape != expected[name].shape:
            have, want = tuple(model.tensors[name].shape), tuple(expected[name].shape)
            raise InputError(f"{path}: tensor {name!r} is {have}, its network wants {want}: another architecture")
        if not bool(model.tensors[name].float().isfinite().all()):
            raise InputError(f"{path}: tensor {name!r} holds NaN or infinity; train the model again")
    networks = build_networks(settings)
    networks.load_state_dict(dict(model.tensors))
    return networks.eval().requires_grad_(False)


def predictor(file: str | None = None) -> nn.Module:
    """The predictor of a model file (``initializer=unet``). None: the bundled model."""
    part = load(file).predictor
    if part is None:
        raise ConfigError(f"{model_path(file)}: holds an affine network only; use it with affine=net")
    return part


def affine(file: str | None = None) -> AffineNetwork:
    """The affine network of a model file (``affine=net``). None: the bundled model."""
    part = load(file).affine
    if part is None:
        raise ConfigError(f"{model_path(file)}: holds no affine network; use affine=opt or affine=none")
    return part
