"""The command line. It parses what is typed and calls ``rdmm.workflows``. Nothing here imports torch, so ``rdmm --help`` is fast."""

from rdmm.cli.program import main

__all__ = ["main"]
