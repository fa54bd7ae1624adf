"""Paths of conf/, networks/ and the bundled model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdmm.config.plugins import plugin_folders
from rdmm.types import ConfigError, option


def share() -> Path:
    """The folder that holds conf/ and networks/: the checkout, or ``rdmm/_share`` of an installed wheel."""
    package = Path(__file__).resolve().parent.parent
    return package / "_share" if (package / "_share" / "conf").is_dir() else package.parent


_further: list[Path] = []


def use_folders(folders: Sequence[Path]) -> None:
    """Set the folders of configurations besides conf/ (``--config-dir``), from now on in this process."""
    _further[:] = folders


def further_folders() -> list[Path]:
    """The folders of ``use_folders``, and those of trusted packages."""
    return list(dict.fromkeys(path.resolve() for path in [*_further, *plugin_folders()]))


def config_folders() -> list[Path]:
    """conf/, the folders of ``use_folders``, and those of trusted packages."""
    return [share() / "conf", *further_folders()]


def bundled_model() -> Path:
    """The model that comes with rdmm."""
    return share() / "networks" / "general3d.safetensors"


def model_path(file: Any) -> str:
    """The given model file; None: the bundled one.

    Raises:
        ConfigError: what is given is no path, or nothing is given and the bundled model is missing.
    """
    if isinstance(file, str):
        return file
    if file is not None:
        raise ConfigError(f"weights must be the path of a model file; got {file!r}")
    if not bundled_model().exists():
        raise ConfigError(f"initializer=unet and affine=net need a trained model: pass {option('weights', 'MODEL.safetensors')}")
    return str(bundled_model())
