"""Paths of conf/, networks/ and the bundled model."""

from __future__ import annotations

from pathlib import Path

from rdmm.types import ConfigError


def share() -> Path:
    """The folder that holds conf/ and networks/: the checkout, or ``rdmm/_share`` of an installed wheel."""
    package = Path(__file__).resolve().parent.parent
    return package / "_share" if (package / "_share" / "conf").is_dir() else package.parent


def bundled_model() -> Path:
    """The model that comes with rdmm."""
    return share() / "networks" / "general3d.safetensors"


def model_path(file: str | None) -> str:
    """The given model file; None: the bundled one.

    Raises:
        ConfigError: no file is given, and the bundled one is missing.
    """
    if file is not None:
        return file
    if not bundled_model().exists():
        raise ConfigError("initializer=unet and affine=net need a trained model: pass --weights MODEL.safetensors")
    return str(bundled_model())
