"""Configuration: YAML and KEY=VALUE become objects. No other package imports Hydra.

``compose`` makes one configuration, ``build`` makes objects of it, ``explain`` words the errors, ``trust`` checks configurations from
files, ``plugins`` knows the packages outside rdmm whose classes may be named. ``renamed`` maps class names that stored files hold to
today's; ``program`` starts train.py and eval.py.
"""

from rdmm.config.build import build
from rdmm.config.compose import changed_settings, check_overrides, compose, quoted
from rdmm.config.location import share
from rdmm.config.trust import require_trusted, require_trusted_yaml

__all__ = ["build", "changed_settings", "check_overrides", "compose", "quoted", "require_trusted", "require_trusted_yaml", "share"]
