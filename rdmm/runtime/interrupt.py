"""Ctrl-C, SIGTERM and SIGHUP: the first stops every search, which keeps its best iterate; the second Ctrl-C or SIGTERM ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

stop = threading.Event()
"""Set by the signal handler. Searches poll it, and stop with their best iterate."""

SIGHUP = getattr(signal, "SIGHUP", None)
"""Sent when the terminal closes or the connection is lost; not every platform has it."""

temporary: set[str] = set()
"""Paths of files that exist only while this process works: locks, and files that are not complete yet."""


def quit_at_once(code: int) -> NoReturn:
    """End the process whatever it is doing: C code may swallow KeyboardInterrupt. No temporary file is left."""
    for path in list(temporary):
        with contextlib.suppress(OSError):
            os.unlink(path)
    os._exit(code)


@contextlib.contextmanager
def interruptible(message: str = "writing the best result so far (press again to quit at once)") -> Iterator[dict[str, int]]:
    """Handle SIGINT, SIGTERM and SIGHUP inside the block: the first sets ``stop`` and prints ``message``, the second ends the process.

    A second SIGHUP does not, because the kernel and the shell each send one. If SIGHUP is ignored (nohup), it stays so.

    Yields:
        a dictionary; after a signal it is {"signal": its number}.
    """
    seen: dict[str, int] = {}

    def handler(number: int, _: object) -> None:
        if number == SIGHUP:
            _leave_lost_terminal()
        elif seen:
            quit_at_once(128 + number)
        if not seen:
            seen["signal"] = number
            stop.set()
            with contextlib.suppress(OSError):  # nobody may be reading any more
                sys.stderr.write(f"rdmm: interrupted: {message}\n")

    handled = [signal.SIGINT, signal.SIGTERM]
    if SIGHUP is not None and signal.getsignal(SIGHUP) != signal.SIG_IGN:
        handled.append(SIGHUP)
    before = {s: signal.signal(s, handler) for s in handled}
    try:
        yield seen
    finally:
        stop.clear()
        for s, old in before.items():
            signal.signal(s, old)


def _leave_lost_terminal() -> None:
    """Discard what is written to a terminal that is gone; otherwise the next message would be an error, and the result be lost."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), number)
