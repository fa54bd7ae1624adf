"""The files of a training run: ``state.pt`` to resume from; ``last``, ``best`` and numbered model files to use.

``state.pt`` alone decides where a run resumes. A run writes it before its first step. Later it is written after ``best`` and the
numbered model file, and before ``last``: wherever a run is killed, the resumed run writes the same files again.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from networks.model import Networks, save
from rdmm.config.renamed import current
from rdmm.io.files import require_file, write_atomically
from rdmm.types import ConfigError, InputError, RdmmError, Tensor
from train.average import AveragedModel

STATE, LAST, BEST = "state.pt", "last.safetensors", "best.safetensors"


ADDED = {
    "loss.consistency_unit": "voxel",
    "trainer.accumulate": 1,
    "trainer.ema": 0.0,
    "trainer.optimizer._target_": "train.trainer.Adam",
    "trainer.optimizer._partial_": True,
    "trainer.schedule": None,
}
"""Settings that the states of earlier versions lack, with the value that these runs had."""

SCHEDULE = ("trainer.max_steps", "trainer.learning_rate", "trainer.warmup", "trainer.floor")
"""Settings that an extended run may change: a new schedule begins."""


@dataclass
class Progress:
    """How far a run has come.

    Args:
        step: steps taken so far.
        begin: step at which the schedule of the learning rate began: 0, or where the run was extended.
        validated: step of the last validation.
        best, best_step: score of the best validation, and its step.
        stale: validations since then.
        length: running mean of the gradients' norms.
        skipped, skipped_in_a_row: steps without an update because the loss or a gradient was not finite.
    """

    step: int = 0
    begin: int = 0
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

    def restore(self, networks: Networks, optimizer: torch.optim.Optimizer, averaged: AveragedModel | None = None) -> Progress | None:
        """Load networks, optimizer and the mean weights from state.pt, and return how far its run came; None if there is no such file.

        Where this run has more steps than that one, a new schedule of the learning rate begins.

        Raises:
            InputError: it is no state of train.py. Only tensors and plain data are read from it, never code.
            ConfigError: its run had other settings (``identity``).
        """
        path = self.path / STATE
        if not path.exists():
            return None
        with _named_errors(path):
            state = _read_state(path)
            found = current(json.loads(state["identity"]))
            extended = found.get("trainer.max_steps", 0) < self.identity.get("trainer.max_steps", 0)
            self._require_same_settings(path, found, SCHEDULE if extended else ())
            networks.load_state_dict(state["networks"])
            optimizer.load_state_dict(state["optimizer"])
            if averaged is not None:
                averaged.load_state_dict(state["averaged"])
            _require_usable(networks, optimizer)
            progress = _read_progress(state["progress"])
            return replace(progress, begin=progress.step, stale=0) if extended else progress

    def _require_same_settings(self, path: Path, found: Mapping[str, Any], free: Sequence[str]) -> None:
        """Raise ConfigError if a setting differs, unless it is one of ``free``."""
        before, now = ADDED | dict(found), ADDED | dict(self.identity)
        different = sorted(k for k in {*before, *now} - {*free} if before.get(k) != now.get(k))
        if different:
            k = different[0]
            raise ConfigError(
                f"{path}: was trained with {k}={before.get(k)}, not {now.get(k)}; resume with that, or start in another folder"
            )

    def save_state(
        self, networks: Networks, optimizer: torch.optim.Optimizer, progress: Progress, averaged: AveragedModel | None = None
    ) -> None:
        """Write ``state.pt``."""
        buffer = io.BytesIO()
        state = {"networks": networks.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}
        if averaged is not None:
            state["averaged"] = averaged.state_dict()
        torch.save({**state, "identity": json.dumps(self.identity, sort_keys=True)}, buffer)
        write_atomically(self.path / STATE, buffer.getvalue())

    def save_model(self, name: str, networks: Networks, progress: Progress) -> None:
        save(self.path / name, networks, self.settings, {"step": progress.step, "score": progress.best})


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Raise InputError with the name of a state that torch, or a check, cannot use."""
    try:
        yield
    except (RdmmError, MemoryError):
        raise
    except Exception as error:  # torch raises what it meets
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: no state of a training run, or a damaged one ({text[:120]}); remove it to start anew") from error


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(require_file(path), map_location="cpu", weights_only=True)
    return state


def stored_weights(path: Path) -> dict[str, Tensor]:
    """The networks' tensors in a state.pt. Raises InputError if it is none."""
    with _named_errors(path):
        return dict(_read_state(path)["networks"])


def load_moments(path: Path, networks: Networks, optimizer: torch.optim.Optimizer) -> None:
    """Load Adam's moments from the state.pt of another run.

    Raises:
        ConfigError: they belong to another architecture.
        InputError: it is no state of train.py.
    """
    with _named_errors(path):
        moments = _read_state(path)["optimizer"]
        try:
            optimizer.load_state_dict(moments)
            _require_usable(networks, optimizer)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"start={path}: its moments of Adam do not fit this run's network; start from its best.safetensors, which has weights only"
            ) from error


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
    numbers = {"begin": 0, **numbers}  # earlier versions did not extend runs
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
