"""What the commands do, from files to files. ``rdmm.cli`` only parses the command line.

``job`` is one registration, ``batch`` runs many, and ``launchers`` start them. ``reports`` writes pages of earlier runs. ``transforms``,
``transport``, ``inspect`` and ``demo`` are the other commands.
"""
