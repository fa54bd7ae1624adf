"""The command line of train.py and eval.py: Hydra's run folders, sweeps and launchers around one function.

This is the only place that starts Hydra as an application.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from rdmm.config.compose import check_overrides, expand, quoted
from rdmm.config.location import share, use_folders
from rdmm.config.plugins import allowing, plugin_folders
from rdmm.config.renamed import current
from rdmm.config.trust import require_trusted_yaml
from rdmm.runtime.memory import memory_errors
from rdmm.types import ConfigError, RdmmError, nearest, option, options_are_typed

log = logging.getLogger(__name__)

HYDRAS_PROVIDERS = ("hydra", "main", "schema")
"""Sources of Hydra's own configuration and of conf/; all other sources are folders that the user named."""

ALLOW = "allow"
"""The only option of these programs that is not Hydra's: ``--allow PACKAGE``."""

INTERRUPTED = 128
"""Exit codes above this one are those of signals, which end a whole sweep."""


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Args:
        code: the exit code.
        value: what a sweep (``--multirun``) compares, if there is something.
    """

    code: int = 0
    value: float | None = None


def run_program(
    name: str,
    run: Callable[[dict[str, Any], list[str], Path], Ended],
    check: Callable[[Sequence[str], str], object] = check_overrides,
) -> None:
    """Check what was typed, then let Hydra call ``run(config, overrides, folder)``.

    An RdmmError of ``run`` becomes one line in the log and its exit code. In a sweep, the jobs after a failed one still run, as far as
    Hydra's launcher has it so; the exit code is then the largest of all. Sweepers get ``Ended.value``.

    Args:
        name: of the configuration in conf/ (``train``, ``eval``).
        run: gets the resolved configuration, the typed KEY=VALUE and Hydra's run folder.
        check: called with the typed KEY=VALUE and ``name`` before Hydra starts, so that errors read as those of ``rdmm register``.
            A sweep types several values at once: it is called for some of their combinations.
    """
    with options_are_typed(ALLOW), contextlib.ExitStack() as stack:
        try:
            packages, sys.argv[1:] = _split_allowed(sys.argv[1:])
            stack.enter_context(allowing(packages))
            _check_words(name, check)
        except RdmmError as error:
            sys.stderr.write(f"{name}: {_error_text(error)}\n")
            sys.exit(error.exit_code)
        codes = [0]

        @hydra.main(version_base=None, config_path=str(share() / "conf"), config_name=name)
        @functools.wraps(run)  # Hydra resolves a relative --config-path from the module of the program
        def application(config: Any) -> float | None:
            with options_are_typed(ALLOW), allowing(packages):  # a launcher may call this in another process
                ended = _run_job(run, config)
            codes.append(ended.code)
            if 0 < ended.code < INTERRUPTED and HydraConfig.get().mode is RunMode.MULTIRUN:
                raise CompactHydraException(f"{name}: a job of the sweep ended with exit code {ended.code}; its log says why")
            if ended.code:
                sys.exit(ended.code)
            return ended.value

        try:
            application()
        except SystemExit as ended:
            sys.exit(max(codes) or ended.code)


def _error_text(error: RdmmError) -> str:
    return f"{type(error).__name__}: {error}"


def _check_words(name: str, check: Callable[[Sequence[str], str], object]) -> None:
    """Check the words of the command line, and write them as Hydra reads them."""
    sys.argv[1:] = [text for word in sys.argv[1:] for text in ([word] if word.startswith("-") else expand(word))]
    typed = get_args_parser().parse_args(sys.argv[1:])
    sys.argv[1:] = [*(word for word in sys.argv[1:] if not word.startswith(SEARCHED)), *_use_folders_of(typed)]
    if not _is_up_to_hydra(typed):
        overrides = [o for o in typed.overrides if not o.startswith("hydra")]
        is_sweep = typed.multirun or "hydra.mode=MULTIRUN" in typed.overrides
        _check_sweep(overrides, name, check) if is_sweep else check(overrides, name)


def _run_job(run: Callable[[dict[str, Any], list[str], Path], Ended], config: Any) -> Ended:
    """Call ``run`` with the configuration that Hydra composed; an RdmmError is logged."""
    logging.getLogger("rdmm").setLevel(logging.WARNING)
    task = HydraConfig.get()
    use_folders([Path(s.path) for s in task.runtime.config_sources if s.schema == "file" and s.provider not in HYDRAS_PROVIDERS])
    plain: Any = current(OmegaConf.to_container(config, resolve=True))
    try:
        with memory_errors():
            return run(plain, list(task.overrides.task), Path(task.runtime.output_dir))
    except RdmmError as error:
        log.error("%s", _error_text(error))
        return Ended(error.exit_code)


def _split_allowed(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The packages of ``--allow PACKAGE``, and the other words, which are Hydra's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(f"--{ALLOW}", action="append", default=[])
    try:
        known, others = parser.parse_known_args(words)
    except argparse.ArgumentError:
        raise ConfigError(f"{option(ALLOW, '')} needs the name of a package, e.g. {option(ALLOW, 'my_package')}") from None
    return known.allow, others


def _check_sweep(overrides: Sequence[str], name: str, check: Callable[[Sequence[str], str], object]) -> None:
    """``check`` for combinations of a sweep's values, in each of which every value is at least once."""
    values = [given for text in overrides if (given := _swept(text))]
    for k in range(max(map(len, values), default=1)):
        check([given[k % len(given)] for given in values], name)


def _swept(text: str) -> list[str]:
    """The overrides that one of a sweep stands for: the values of ``key=a,b``, ``choice`` and ``range``, the lowest of ``interval``.

    None of ``glob``, which only Hydra can expand.
    """
    (override,) = OverridesParser.create().parse_overrides([text])
    if not override.is_sweep_override():
        return [text]
    swept: Any = override.value()
    if override.is_interval_sweep():
        return [f"{override.get_key_element()}={swept.start}"]
    known = not isinstance(swept, Glob)
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()] if known else []


SEARCHED = "hydra.searchpath="


def _use_folders_of(typed: argparse.Namespace) -> list[str]:
    """Check the folders of configurations that were typed, and let every composition of this process know them.

    Returns:
        the search path for Hydra, as an override: what was typed, and the folders of trusted packages. Nothing if there are none.

    Raises:
        ConfigError: there is no such folder, or a file in it cannot be trusted.
    """
    lists = [o.removeprefix(SEARCHED).strip("[]").split(",") for o in typed.overrides if o.startswith(SEARCHED)]
    searched = [text.strip(" '\"") for texts in lists for text in texts]
    named = [("hydra.searchpath", text.removeprefix("file://")) for text in searched]
    named = [("--config-dir", typed.config_dir), *((word, text) for word, text in named if not text.startswith("pkg://"))]
    for word, folder in [("--config-path", typed.config_path), *named]:
        if folder is not None:
            path = Path(folder).resolve()
            if not path.is_dir():
                siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
                raise ConfigError(f"{word} {folder}: no such folder{nearest(path.name, siblings)}")
            require_trusted_yaml(path)
    use_folders([Path(folder).resolve() for _, folder in named if folder is not None])
    searched += [f"file://{folder.resolve()}" for folder in plugin_folders()]
    return [f"{SEARCHED}[{','.join(map(quoted, searched))}]"] if searched else []


def _is_up_to_hydra(typed: argparse.Namespace) -> bool:
    """Whether Hydra only shows something, such as the configuration, or composes from other files than conf/."""
    shown = typed.help or typed.hydra_help or typed.cfg or typed.info or typed.shell_completion
    return bool(shown or typed.config_path or typed.config_name)
