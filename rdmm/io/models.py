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
from typing import Any

from rdmm.io.files import require_file, write_atomically
from rdmm.types import InputError, Tensor
from rdmm.version import __version__

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
    out = hashlib.sha256(json.dumps({k: v for k, v in head.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        out.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        out.update(x.numpy().tobytes())
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
            of a newer format, or damaged (sha256).
    """
    from safetensors import SafetensorError, safe_open

    path = require_file(path)
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in sorted(f.keys())}
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: damaged, or not a safetensors file ({str(error).splitlines()[0]}); copy or train it again") from error
    if "rdmm" not in metadata:
        raise InputError(f"{path}: no model of rdmm: its header has no entry 'rdmm'; give a file that train.py wrote")
    head = _parse_header(path, metadata["rdmm"])
    if digest(tensors, head) != head["sha256"]:
        raise InputError(f"{path}: damaged: its content differs from what was written (sha256); copy or train it again")
    return Model(tensors, head["settings"], head["facts"])


def _parse_header(path: os.PathLike[str], text: str) -> dict[str, Any]:
    try:
        head = json.loads(text)
        number = int(head["format"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: the header cannot be read ({error}); copy or train the model again") from error
    if number > FORMAT:
        raise InputError(f"{path}: format {number}, written by rdmm {head.get('version')}; this is rdmm {__version__}: install a newer one")
    missing = [k for k in ("sha256", "settings", "facts") if k not in head]
    if missing or not isinstance(head["settings"], dict):
        raise InputError(f"{path}: the header lacks {missing[0] if missing else 'settings'!r}; copy or train the model again")
    return head


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
