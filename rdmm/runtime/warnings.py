"""Collect warnings logged during a run, for run.json and the report."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T", bound=Any)


class _WarningHandler(logging.Handler):
    """Collects the warnings of the thread that created it."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts, self.thread = texts, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.texts.append(record.getMessage())


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Inside the block, collect the warnings that rdmm logs in this thread. Yields the list that is being filled."""
    texts: list[str] = []
    handler, log = _WarningHandler(texts), logging.getLogger("rdmm")
    log.addHandler(handler)
    try:
        yield texts
    finally:
        log.removeHandler(handler)


def with_warnings(read: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that returns a dataclass: the warnings logged during the call go to its field ``warnings``."""

    @functools.wraps(read)
    def read_and_collect(*args: P.args, **kwargs: P.kwargs) -> T:
        with collect_warnings() as texts:
            result = read(*args, **kwargs)
        return replace(result, warnings=tuple(texts))

    return read_and_collect


def other_warnings(warnings: Sequence[str], reasons: Sequence[str]) -> list[str]:
    """The warnings that repeat no reason of the verdict."""
    return [w for w in warnings if not any(reason in w for reason in reasons)]
