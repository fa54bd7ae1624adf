"""Warnings of a run, kept for those who read its results and not its log."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")


Noted = TypeVar("Noted", bound=Any)


class _WarningHandler(logging.Handler):
    """The texts of one thread's warnings."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts, self.thread = texts, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.texts.append(record.getMessage())


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """What this thread's parts of rdmm warn of meanwhile, in order."""
    texts: list[str] = []
    handler, log = _WarningHandler(texts), logging.getLogger("rdmm")
    log.addHandler(handler)
    try:
        yield texts
    finally:
        log.removeHandler(handler)


def with_warnings(read: Callable[P, Noted]) -> Callable[P, Noted]:
    """A reader whose result, a dataclass, holds in ``warnings`` what it warned of."""

    @functools.wraps(read)
    def noting(*args: P.args, **kwargs: P.kwargs) -> Noted:
        with collect_warnings() as texts:
            found = read(*args, **kwargs)
        return replace(found, warnings=tuple(texts))

    return noting
