"""The files of a training run: ``state.pt`` to resume from; ``last``, ``best`` and numbered model files to use.

``state.pt`` alone decides where a run resumes. A run writes it before its first step. Later it is written after ``best`` and the
numbered model file, and before ``last``: wherever a run is killed, the resumed run writes the same files again.
"""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from networks.model import Networks, save
from rdmm.config.renamed import current
from rdmm.io.files import require_file, write_atomically
from rdmm.types import ConfigError, InputError, RdmmError

STATE, LAST, BEST = "state.pt", "last.safetensors", "best.safetensors"


@dataclass
class Progress:
    """How far a run has come.

    Args:
        step: steps taken so far.
        validated: step of the last validation.
        best, best_step: score of the best validation, and its step.
        stale: validations since then.
        length: running mean of the gradients' norms.
        skipped, skipped_in_a_row: steps without an update because the loss or a gradient was not finite.
    """

    step: int = 0
    validated: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    length: float = 0.0
    skipped_in_a_row: int = 0
    skipped: int = 0


@dataclass(frozen=True, eq=False)
class RunFolder:
    """The files of one run.

    Args:
        settings: written into every model file; networks.model builds the networks from them.
        identity: settings that a resumed run must share.
    """

    path: Path
    settings: Mapping[str, Any]
    identity: Mapping[str, Any]

    def restore(self, networks: Networks, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Load networks and optimizer from state.pt, and return how far its run came; None if there is no such file.

        Raises:
            InputError: it is no state of train.py. Only tensors and plain data are read from it, never code.
            ConfigError: its run had other settings (``identity``).
        """
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            state = torch.load(require_file(path), map_location="cpu", weights_only=True)
            self._require_same_settings(path, current(json.loads(state["identity"])))
            networks.load_state_dict(state["networks"])
            optimizer.load_state_dict(state["optimizer"])
            _require_usable(networks, optimizer)
            return _read_progress(state["progress"])
        except (RdmmError, MemoryError):
            raise
        except Exception as error:  # torch raises what it meets
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path}: no state of a training run, or a damaged one ({text[:120]}); remove it to start anew") from error

    def _require_same_settings(self, path: Path, found: Mapping[str, Any]) -> None:
        different = sorted(k for k in {*found, *self.identity} if found.get(k) != self.identity.get(k))
        if different:
            k = different[0]
            raise ConfigError(
                f"{path}: was trained with {k}={found.get(k)}, not {self.identity.get(k)}; resume with that, or start in another folder"
            )

    def save_state(self, networks: Networks, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write ``state.pt``."""
        buffer = io.BytesIO()
        state = {"networks": networks.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}
        torch.save({**state, "identity": json.dumps(self.identity, sort_keys=True)}, buffer)
        write_atomically(self.path / STATE, buffer.getvalue())

    def save_checkpoint(self, networks: Networks, optimizer: torch.optim.Optimizer, progress: Progress, numbered: bool) -> None:
        """Write a numbered model file if ``numbered``, ``state.pt`` and ``last``."""
        if numbered:
            self.save_model(f"step_{progress.step:07d}.safetensors", networks, progress)
        self.save_state(networks, optimizer, progress)
        self.save_model(LAST, networks, progress)

    def save_model(self, name: str, networks: Networks, progress: Progress) -> None:
        save(self.path / name, networks, self.settings, {"step": progress.step, "score": progress.best})


def _require_usable(networks: Networks, optimizer: torch.optim.Optimizer) -> None:
    """Take a step without gradients, with copies: torch raises what does not fit each other. Raises ValueError for numbers not finite."""
    networks, optimizer = copy.deepcopy((networks, optimizer))
    for x in networks.parameters():
        x.grad = torch.zeros_like(x)
    optimizer.step()
    if not all(bool(x.isfinite().all()) for x in networks.state_dict().values()):
        raise ValueError("its parameters are not finite, or not after a step")


def _read_progress(numbers: Mapping[str, Any]) -> Progress:
    """Raises ValueError for anything but all fields as finite numbers >= 0; ``best`` may be negative or None."""
    if set(numbers) != {f.name for f in fields(Progress)}:
        raise ValueError(f"its progress holds {', '.join(map(str, numbers)) or 'nothing'}")
    for name, value in numbers.items():
        whole = name not in ("best", "length")
        if name == "best" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}")
        if name != "best" and value < 0:
            raise ValueError(f"{name} is {value!r}")
    return Progress(**numbers)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested settings."""
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {k: v for key, value in node.items() for k, v in flatten(value, f"{prefix}{key}.").items()}
