"""Progress of a search: the optimizer reports each iteration to listeners, such as the progress bar; lines of the log elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from rdmm.types import ConfigError

Listener = Callable[[int, int, int, float], None]
"""Called with level, iteration, iterations of this level, energy."""

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("_listeners", default=())


@contextlib.contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Inside the block, call ``listener`` after every iteration of every search of this thread."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def report_progress(level: int, iteration: int, total: int, energy: float) -> None:
    """Report one finished iteration to the listeners.

    Args:
        level: level of the image pyramid; 0 is the coarsest.
        iteration: number of the iteration on this level.
        total: largest number of iterations on this level.
        energy: value of the objective.
    """
    for listener in _listeners.get():
        listener(level, iteration, total, energy)


@contextlib.contextmanager
def progress_bar() -> Iterator[None]:
    """Show a progress bar on stderr, or below the cell of a notebook."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[energy]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task("affine", total=None, energy="")

    def show_iteration(level: int, iteration: int, total: int, energy: float) -> None:
        bar.update(task, description=f"level {level}", completed=iteration, total=total, energy=f"energy {energy:.5f}")

    with bar, progress_listener(show_iteration):
        yield


def shown_progress(verbose: bool | None) -> contextlib.AbstractContextManager[None]:
    """The progress of a call from Python, inside the block.

    Args:
        verbose: None: a bar in notebooks and interactive sessions, nothing in scripts; True: always, as lines where a bar cannot be drawn;
            False: nothing.

    Raises:
        ConfigError: it is none of these.
    """
    if verbose is not None and not isinstance(verbose, bool):
        raise ConfigError(f"verbose must be True, False or None; got {verbose!r}")
    shell = _shell()
    wanted = (bool(shell) or hasattr(sys, "ps1")) if verbose is None else verbose
    if not wanted:
        return contextlib.nullcontext()
    in_notebook = shell == "ZMQInteractiveShell" and importlib.util.find_spec("ipywidgets") is not None  # which rich needs
    return progress_bar() if in_notebook or sys.stderr.isatty() else _logged_lines()


def _shell() -> str:
    """The class of IPython's shell, "ZMQInteractiveShell" in a notebook; "" without one."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return "" if shell is None else type(shell).__name__


@contextlib.contextmanager
def _logged_lines() -> Iterator[None]:
    """Inside the block, rdmm's log of the level INFO goes to stderr."""
    log, handler = logging.getLogger("rdmm"), logging.StreamHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
