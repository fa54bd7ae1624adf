"""The command line of train.py and eval.py: Hydra's run folders, sweeps and launchers around one function.

This is the only place that starts Hydra as an application.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from rdmm.config.compose import check_overrides, expand
from rdmm.config.location import share, use_folders
from rdmm.config.renamed import current
from rdmm.config.trust import require_trusted_yaml
from rdmm.runtime.memory import memory_errors
from rdmm.types import ConfigError, RdmmError, nearest

log = logging.getLogger(__name__)

HYDRAS_PROVIDERS = ("hydra", "main", "schema")
"""Sources of Hydra's own configuration and of conf/; all other sources are folders that the user named."""


def run_program(
    name: str,
    run: Callable[[dict[str, Any], list[str], Path], int],
    check: Callable[[Sequence[str], str], object] = check_overrides,
) -> None:
    """Check what was typed, then let Hydra call ``run(config, overrides, folder)``; it returns the exit code.

    An RdmmError of ``run`` becomes one line in the log and its exit code.

    Args:
        name: of the configuration in conf/ (``train``, ``eval``).
        run: gets the resolved configuration, the typed KEY=VALUE and Hydra's run folder.
        check: called with the typed KEY=VALUE and ``name`` before Hydra starts, so that errors read as those of ``rdmm register``.
            A sweep (``--multirun``) types several values at once, so only the form of its settings is checked.
    """
    try:
        sys.argv[1:] = [text for word in sys.argv[1:] for text in ([word] if word.startswith("-") else expand(word))]
        typed = get_args_parser().parse_args(sys.argv[1:])
        _use_folders_of(typed)
        if not _is_up_to_hydra(typed):
            overrides = [o for o in typed.overrides if not o.startswith("hydra")]
            (check_overrides if typed.multirun else check)(overrides, name)
    except RdmmError as error:
        sys.stderr.write(f"{name}: {_error_text(error)}\n")
        sys.exit(error.exit_code)

    @hydra.main(version_base=None, config_path=str(share() / "conf"), config_name=name)
    @functools.wraps(run)  # Hydra resolves a relative --config-path from the module of the program
    def application(config: Any) -> None:
        logging.getLogger("rdmm").setLevel(logging.WARNING)
        task = HydraConfig.get()
        use_folders([Path(s.path) for s in task.runtime.config_sources if s.schema == "file" and s.provider not in HYDRAS_PROVIDERS])
        plain: Any = current(OmegaConf.to_container(config, resolve=True))
        try:
            with memory_errors():
                code = run(plain, list(task.overrides.task), Path(task.runtime.output_dir))
        except RdmmError as error:
            log.error("%s", _error_text(error))
            code = error.exit_code
        if code:
            sys.exit(code)

    application()


def _error_text(error: RdmmError) -> str:
    return f"{type(error).__name__}: {error}"


def _use_folders_of(typed: argparse.Namespace) -> None:
    """Check the folders of configurations that were typed, and let every composition of this process know them.

    Raises:
        ConfigError: there is no such folder, or a file in it cannot be trusted.
    """
    searched = [o.partition("=")[2].strip("[]").split(",") for o in typed.overrides if o.startswith("hydra.searchpath=")]
    named = [("hydra.searchpath", text.strip(" '\"").removeprefix("file://")) for texts in searched for text in texts]
    named = [("--config-dir", typed.config_dir), *((option, text) for option, text in named if not text.startswith("pkg://"))]
    for option, folder in [("--config-path", typed.config_path), *named]:
        if folder is not None:
            path = Path(folder).resolve()
            if not path.is_dir():
                siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
                raise ConfigError(f"{option} {folder}: no such folder{nearest(path.name, siblings)}")
            require_trusted_yaml(path)
    use_folders([Path(folder).resolve() for _, folder in named if folder is not None])


def _is_up_to_hydra(typed: argparse.Namespace) -> bool:
    """Whether Hydra only shows something, such as the configuration, or composes from other files than conf/."""
    shown = typed.help or typed.hydra_help or typed.cfg or typed.info or typed.shell_completion
    return bool(shown or typed.config_path or typed.config_name)
