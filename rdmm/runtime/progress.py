"""Progress of a search: the optimizer reports, whoever shows it listens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Listener = Callable[[int, int, int, float], None]
"""Called with level, iteration, iterations of this level, energy."""

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("_listeners", default=())


@contextlib.contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Call ``listener`` after every iteration of every search that this thread makes in the meantime."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def report_progress(level: int, iteration: int, total: int, energy: float) -> None:
    """Tell the listeners of one finished iteration.

    Args:
        level: of the image pyramid, 0 the coarsest.
        iteration: the number of this iteration, of at most ``total`` on this level.
        energy: the value of the objective.
    """
    for listener in _listeners.get():
        listener(level, iteration, total, energy)
