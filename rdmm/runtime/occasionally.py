"""Work that is repeated after every result, such as writing a growing table, without taking a growing share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

SHARE = 0.05
"""About the share of the time that the repeated work takes."""


class Occasionally:
    """Calls ``work`` when asked to, unless the last call took more than SHARE of the time since; always at the end of its block.

    A table of a few rows is thus written after every row, and one of twenty thousand rows once a minute.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._next, self._pending = work, 0.0, True

    def __enter__(self) -> Occasionally:
        return self

    def __call__(self) -> None:
        self._pending = True
        if time.monotonic() >= self._next:
            self._do()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pending:
            self._do()

    def _do(self) -> None:
        begin = time.monotonic()
        self._work()
        end = time.monotonic()
        self._next, self._pending = end + (end - begin) * (1 / SHARE - 1), False
