"""Reading and writing whole files. A file is written in full or not at all, and is overwritten only on request."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdmm.types import ConfigError, InputError, OutputError, nearest

log = logging.getLogger(__name__)


LOCKS_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Error codes of file systems that do not support locks."""


def require_file(path: str | os.PathLike[str]) -> Path:
    """Check that a file exists, can be read and is not empty; return its path.

    Raises:
        InputError: it is missing (with the nearest name in its folder), a directory, or empty.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory, not a file")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        where = "" if path.parent.is_dir() else f" (there is no folder {path.parent})"
        raise InputError(f"{path}: no such file{where}{nearest(path.name, siblings)}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it; change it (chmod) or copy the file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    return path


def require_ending(path: str | os.PathLike[str], endings: Sequence[str], what: str) -> Path:
    """Check, before anything is computed, that ``what`` can be written under this name; return its path.

    Args:
        endings: the endings that are written, in lower case. The case of the name does not matter.
        what: what is written, for the message, e.g. "an image".

    Raises:
        ConfigError: the name has another ending.
    """
    path = Path(path)
    if not path.name.lower().endswith(tuple(endings)):
        raise ConfigError(f"{path}: the name of {what} ends in {' or '.join(endings)}; rename it")
    return path


def require_finite_result(path: str | os.PathLike[str], *arrays: np.ndarray) -> None:
    """Raise OutputError if a result that is about to be written holds NaN or Inf. Every writer of numbers calls this."""
    for array in arrays:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise OutputError(f"{os.fspath(path)}: not written: {bad} of {array.size} numbers are NaN or Inf; check the inputs' values")


def sha256(path: str | os.PathLike[str]) -> str:
    """Checksum of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def gzip_bytes(data: bytes) -> bytes:
    """Compress with gzip. The time stamp is 0, so that equal data give equal files."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0, filename="") as f:
        f.write(data)
    return buffer.getvalue()


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write to a temporary file in the same folder, read it back, then rename it.

    At any time the path holds the complete old file or the complete new one.

    Raises:
        OutputError: the disk is full, the folder cannot be written, or the bytes read back differ.
    """
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False) as f:
            temporary = Path(f.name)
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        if temporary.read_bytes() != data:
            raise OutputError(f"{path}: the bytes read back differ from those written; check the disk")
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot write it: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@dataclass(frozen=True)
class Outputs:
    """The output files of one run: a prefix of their names, as in ANTs, or a folder (ends in /, or exists)."""

    prefix: str

    @classmethod
    def prepare(cls, out: str | os.PathLike[str], names: list[str], *, overwrite: bool) -> Outputs:
        """Make the folder, and check that every file can be written, before anything is computed.

        Raises:
            OutputError: a file exists already, or the folder cannot be made or written.
        """
        text = os.fspath(out)
        is_folder = text.endswith(("/", os.sep)) or Path(text).is_dir()
        self = cls(text if not is_folder else os.path.join(text, ""))
        folder = self.path("x").parent
        existing = [self.path(n) for n in names if self.path(n).exists()]
        if existing and not overwrite:
            raise OutputError(f"{existing[0]}: exists already; choose another -o or pass --overwrite")
        try:
            if is_folder:
                folder.mkdir(parents=True, exist_ok=True)
            elif not folder.is_dir():
                raise OutputError(f"{folder}: no such folder; make it, or end -o with / so that rdmm makes it")
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".rdmm-"):
                pass
        except OSError as error:
            raise OutputError(f"{folder}: cannot write there: {error.strerror or error}") from error
        return self

    def path(self, name: str) -> Path:
        return Path(f"{self.prefix}{name}")

    def name(self, path: Path) -> str:
        """The name without the prefix: the inverse of ``path``."""
        return os.fspath(path)[len(os.fspath(self.path("x"))) - 1 :]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to this prefix, until the context ends.

        Raises:
            OutputError: another run is writing there.
        """
        from filelock import FileLock, Timeout

        folder, name = self.path("x").parent, self.path("").name if not self.prefix.endswith(os.sep) else ""
        path = folder / f".{name}rdmm.lock"
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise OutputError(f"{self.prefix}: another run of rdmm is writing there; wait for it, or choose another -o") from None
        except (OSError, NotImplementedError) as error:
            if not isinstance(error, NotImplementedError) and error.errno not in LOCKS_UNSUPPORTED:
                raise OutputError(f"{folder}: cannot write there: {error.strerror or error}") from error
            log.warning("%s: this file system has no locks: make sure that no other run writes there", folder)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check, before anything is computed, that one file can be written; return its path.

    Raises:
        OutputError: it is a directory, it exists already, or its folder is missing or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; name a file")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; make it first")
    Outputs.prepare(path.parent / "", [path.name], overwrite=overwrite)
    return path
