"""Ctrl-C and SIGTERM: the first signal stops every search, which keeps its best iterate; the second ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

stop = threading.Event()
"""Set by the signal handler. Searches poll it, and stop with their best iterate."""


@contextlib.contextmanager
def interruptible(message: str = "writing the best result so far (press again to quit at once)") -> Iterator[dict[str, int]]:
    """Handle SIGINT and SIGTERM inside the block: the first sets ``stop`` and prints ``message``, the second ends the process.

    Yields:
        a dictionary; after a signal it is {"signal": its number}.
    """
    seen: dict[str, int] = {}

    def handler(number: int, _: object) -> None:
        if seen:
            os._exit(128 + number)
        seen["signal"] = number
        stop.set()
        sys.stderr.write(f"rdmm: interrupted: {message}\n")

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        stop.clear()
        for s, old in before.items():
            signal.signal(s, old)
