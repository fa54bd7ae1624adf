"""The command line: what is typed. No torch here, so that ``rdmm --help`` answers at once."""

from rdmm.cli.program import main

__all__ = ["main"]
