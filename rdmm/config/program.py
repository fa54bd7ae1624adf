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
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from rdmm.config.compose import check_overrides
from rdmm.config.location import share
from rdmm.config.renamed import current
from rdmm.config.trust import require_trusted_yaml
from rdmm.runtime.memory import memory_errors
from rdmm.types import RdmmError

log = logging.getLogger(__name__)


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
    arguments = sys.argv[1:]
    overrides = [a for a in arguments if not a.startswith(("-", "hydra"))]
    try:
        for folder in _config_folders(arguments):
            require_trusted_yaml(folder)
        (check_overrides if {"-m", "--multirun"} & set(arguments) else check)(overrides, name)
    except RdmmError as error:
        sys.stderr.write(f"{name}: {_error_text(error)}\n")
        sys.exit(error.exit_code)

    @hydra.main(version_base=None, config_path=str(share() / "conf"), config_name=name)
    @functools.wraps(run)  # Hydra resolves a relative --config-path from the module of the program
    def application(config: Any) -> None:
        logging.getLogger("rdmm").setLevel(logging.WARNING)
        task = HydraConfig.get()
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


def _config_folders(arguments: list[str]) -> list[Path]:
    """Folders of configurations besides conf/ (--config-dir, --config-path)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in (("--config-dir", "-cd"), ("--config-path", "-cp")):
        parser.add_argument(*names)
    return [Path(v) for v in vars(parser.parse_known_args(arguments)[0]).values() if v]
