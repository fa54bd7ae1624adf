"""``python -m rdmm``, and the command ``rdmm``."""

import io
import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """The command line. While its modules are read there is nothing to lose: Ctrl-C ends at once."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names that are not UTF-8 are printed as they are
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from rdmm.cli import main as program

    signal.signal(signal.SIGINT, before)
    program()
    sys.exit(0)


if __name__ == "__main__":
    main()
