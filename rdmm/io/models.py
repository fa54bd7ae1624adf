"""Trained networks in one file: safetensors, with settings and a checksum in the header.

The header's only entry ``rdmm`` is JSON: ``format``, ``version`` of rdmm, ``sha256`` of the content, ``settings`` (from which the
networks are built, and with which they are used), and ``facts`` about the training. Reading a file executes nothing: settings are
plain data, and the classes that they name are checked against the allow-list of ``rdmm.config``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rdmm.io.files import require_file, write_atomically
from rdmm.types import InputError
from rdmm.version import __version__

if TYPE_CHECKING:  # whoever reads no model needs no torch
    from rdmm.types import Tensor

FORMAT = 1
"""Version of the file format. Files of a newer version are refused."""

MAX_HEADER_BYTES = 2**20
"""Largest header of a model file, in bytes. A longer one is refused before it is read.

Not measured: the bundled model's has some kilobytes.
"""


@dataclass(frozen=True, eq=False)
class Model:
    """What a model file holds.

    Args:
        tensors: the networks' parameters by name.
        settings: plain data (mappings, lists, numbers, texts) from which the networks are built.
        facts: about the training; for information only.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


def digest(tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> str:
    """sha256 of the header (without its entry ``sha256``) and of the tensors' names, types, shapes and values."""
    import torch

    out = hashlib.sha256(json.dumps({k: v for k, v in head.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        out.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        out.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return out.hexdigest()


def write_model(path: str | os.PathLike[str], model: Model) -> None:
    """Write a model file atomically."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in model.tensors.items()}
    head = {"format": FORMAT, "version": __version__, "settings": model.settings, "facts": model.facts}
    head |= {"sha256": digest(tensors, head)}
    write_atomically(path, save(tensors, metadata={"rdmm": json.dumps(head, sort_keys=True, allow_nan=False)}))


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like a model of rdmm or like a pickled checkpoint; ``read_model`` checks it."""
    with open(path, "rb") as f:
        start = f.read(64 * 1024)
    return _is_pickle(start) or b'"rdmm":' in start


def read_model(path: str | os.PathLike[str]) -> Model:
    """Read and check a model file.

    Raises:
        InputError: it is missing, a pickle (which could run code, so it is never opened), not safetensors, not written by rdmm,
            of a newer format, damaged (sha256), or no description of a network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = require_file(path)
    _refuse_pickle(path)
    data = path.read_bytes()  # not mapped: a file that another program changes meanwhile would end the process
    try:
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: damaged, or not a safetensors file ({str(error).splitlines()[0]}); copy or train it again") from error
    if "rdmm" not in metadata:
        raise InputError(f"{path}: no model of rdmm: its header has no entry 'rdmm'; give a file that train.py wrote")
    head = _parse_header(path, metadata["rdmm"])
    if digest(tensors, head) != head["sha256"]:
        raise InputError(f"{path}: damaged: its content differs from what was written (sha256); copy or train it again")
    _require_settings(path, head["settings"])
    return Model(tensors, head["settings"], head["facts"])


HEADER_KINDS = {"version": str, "sha256": str, "settings": dict, "facts": dict}
"""What the entries of a header are, beside its format."""


def _parse_header(path: os.PathLike[str], text: str) -> dict[str, Any]:
    try:
        head = json.loads(text)
        json.dumps(head)  # as deep as digest needs it
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header cannot be read ({error}); copy or train the model again") from error
    number = head.get("format") if isinstance(head, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise InputError(f"{path}: the header has no 'format', a whole number; copy or train the model again")
    if number > FORMAT:
        raise InputError(f"{path}: format {number}, written by rdmm {head.get('version')}; this is rdmm {__version__}: install a newer one")
    for name, kind in HEADER_KINDS.items():
        if not isinstance(head.get(name), kind):
            words = "a text" if kind is str else "an object"
            raise InputError(f"{path}: the header's {name!r} must be {words}; copy or train the model again")
    return head


def _require_settings(path: os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Raise InputError unless the settings describe a network, and their other entries have the right form."""
    parts = {k: settings[k] for k in ("affine", "predictor") if settings.get(k) is not None}
    wrong = [k for k, v in parts.items() if not isinstance(v, dict) or "_target_" not in v]
    wrong += [] if isinstance(settings.get("register", {}), dict) else ["register"]
    steps = settings.get("steps", 1)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= 100:
        wrong.append("steps")
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} in its settings cannot be {str(settings[wrong[0]])[:80]!r}; train it again")
    if not parts:
        raise InputError(f"{path}: its settings name no network ('affine' or 'predictor'); give a file that train.py wrote")


def _refuse_pickle(path: os.PathLike[str]) -> None:
    with open(path, "rb") as f:
        start = f.read(9)
    if _is_pickle(start):
        raise InputError(f"{path}: a pickled checkpoint, which could run code: refused; give the .safetensors file that train.py wrote")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise InputError(f"{path}: not a model: its header claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed")


def _is_pickle(start: bytes) -> bool:
    """Whether a file with these first nine bytes is a pickle.

    A safetensors file begins with eight bytes, the length of its header, whose first may be that of a pickle. Its ninth byte is {.
    """
    return start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{"
