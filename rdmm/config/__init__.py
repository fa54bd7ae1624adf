"""Configuration: YAML and KEY=VALUE become objects. No other package knows Hydra."""

from rdmm.config.build import build
from rdmm.config.compose import check_overrides, compose, quoted
from rdmm.config.location import share
from rdmm.config.trust import require_plain_yaml, require_trusted

__all__ = ["build", "check_overrides", "compose", "quoted", "require_plain_yaml", "require_trusted", "share"]
