"""Loading torch without the tables that only its compiler reads.

``import torch`` also writes, in Python, a kernel of each operation for tensors without data. torch.compile and torch.export ask these
kernels for shapes; nothing else does, and to write them takes a third of the time of the import.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TABLES = "torch._meta_registrations"
READERS = ("torch._dynamo", "torch._inductor")
"""Modules of torch that need TABLES."""


class _Later(MetaPathFinder, Loader):
    """Finds an empty module in place of TABLES, until one of READERS is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in READERS:
            sys.meta_path.remove(self)
            sys.modules.pop(TABLES, None)
            importlib.import_module(TABLES)
        return ModuleSpec(name, self) if name == TABLES else None

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def defer_tables() -> None:
    """From now on in this process, torch loads TABLES when they are needed. Where it is loaded already, nothing changes."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _Later())
