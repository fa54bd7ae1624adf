"""Progress of a search: the optimizer reports each iteration to listeners, such as the progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

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
