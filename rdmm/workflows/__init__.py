"""Files to files: what the commands do. ``rdmm.cli`` has a file of the same name that only parses.

``job`` is one registration, ``batch`` many, which ``launchers`` start; ``reports`` makes pages of what was written earlier.
``transforms``, ``transport``, ``inspect`` and ``demo`` are the small commands.
"""
