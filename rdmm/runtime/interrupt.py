"""Ctrl-C and SIGTERM: the first one ends every search with its best iterate so far, the second one ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

stop = threading.Event()
"""Set by a signal handler: every search ends with its best iterate so far."""


@contextlib.contextmanager
def interruptible(message: str = "writing the best result so far (once more: quit at once)") -> Iterator[dict[str, int]]:
    """Yields {"signal": n} once SIGINT or SIGTERM came; the second quits at once."""
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
