"""The command line: what a user types.

``program`` lists the commands, the other files define them, ``terminal`` holds what they share (options, log, progress bar, errors).
No torch here, so that ``rdmm --help`` answers at once; each command calls its function in ``rdmm.workflows``.
"""

from rdmm.cli.program import main

__all__ = ["main"]
