"""``python -m rdmm``, and the command ``rdmm``."""

import atexit
import gc
import io
import os
import signal
import sys
from typing import NoReturn

from rdmm.runtime.torch_start import defer_tables


def command() -> NoReturn:
    """The process ``rdmm``: ``main``, and a quick end."""
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            _end(ended.code)
        raise


def main() -> NoReturn:
    """The command line. While its modules are read there is nothing to lose: Ctrl-C ends at once."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names that are not UTF-8 are printed as they are
    gc.set_threshold(1_000_000, 50, 100)  # modules are no garbage: looking for some among 400 000 objects takes a tenth of a second
    defer_tables()
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from rdmm.cli import main as program

    signal.signal(signal.SIGINT, before)
    program()
    sys.exit(0)


def _end(code: int) -> None:
    """End the process without taking its modules apart, which takes torch a third of a second. Returns if the output cannot be written."""
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(code)


if __name__ == "__main__":
    command()
