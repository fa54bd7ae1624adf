"""Files to files: what the commands do. The command line in ``rdmm.cli`` only parses."""
