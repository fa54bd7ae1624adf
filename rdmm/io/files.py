"""Reading and writing whole files. A file is written in full or not at all, and is overwritten only on request."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from rdmm.runtime.interrupt import temporary
from rdmm.types import ConfigError, InputError, OutputError, nearest, option

log = logging.getLogger(__name__)


LOCKS_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Error codes of file systems that do not support locks."""


def require_file(path: str | os.PathLike[str]) -> Path:
    """Check that a file exists, can be read and is not empty; return its path.

    Raises:
        InputError: it is missing (with the nearest name in its folder), is a folder or a pipe, is empty, or its path cannot be followed.
    """
    try:
        path = Path(path)
    except TypeError as error:
        raise InputError(f"the name of a file is a text or a pathlib.Path, not {type(path).__name__}") from error
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(path)}: {path_problem(path, error)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: is a directory, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is a pipe or a device, not a file; save its content to a file and give that")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it; change it (chmod) or copy the file")
    if status.st_size == 0:
        raise InputError(f"{path}: the file is empty")
    return path


def printable(path: str | os.PathLike[str]) -> str:
    """The path as one line of text: a NUL character, which no path can hold, is shown as \\0."""
    return os.fspath(path).replace("\0", "\\0")


def path_problem(path: Path, error: OSError | ValueError) -> str:
    """What is wrong with a path that the system cannot follow, and what to do. ``error`` is what the system said."""
    if not isinstance(error, OSError):
        return "the name holds a NUL character or half a character, which no name of a file can; remove it"
    number = error.errno
    if number == errno.ENAMETOOLONG:
        return "the name is too long: most systems allow 255 bytes for a name and 4095 for a path; choose a shorter one"
    if number == errno.ELOOP:
        return "its links lead in a circle; give the file itself"
    folders = list(reversed(path.parents))
    if number == errno.ENOTDIR:
        return f"{next((p for p in folders if os.path.isfile(p)), path.parent)} is a file, not a folder"
    if number == errno.EACCES:
        closed = next((p for p in folders if os.path.isdir(p) and not os.access(p, os.X_OK)), path.parent)
        return f"no permission to open the folder {closed}; change it (chmod), or use another folder"
    return _what_is_missing(path) if number == errno.ENOENT else error.strerror or str(error)


def _what_is_missing(path: Path) -> str:
    """Which part of a path does not exist: a link's target, a folder or the file, with the nearest name in its folder."""
    missing = next((p for p in [*reversed(path.parents), path] if not os.path.exists(p)), path)
    if missing.is_symlink():
        which = "" if missing == path else f"{missing} "
        return f"{which}is a link to {os.readlink(missing)}, which does not exist; mend the link, or give the file itself"
    if missing != path:
        return f"no such file (there is no folder {missing})"
    siblings: list[str] = []
    with contextlib.suppress(OSError):
        siblings = os.listdir(path.parent)
    return f"no such file{nearest(path.name, siblings)}"


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


def require_finite_result(path: str | os.PathLike[str], array: np.ndarray) -> np.ndarray:
    """The array that is about to be written to ``path``. Every writer of numbers calls this or ``finite_float32``.

    Raises:
        OutputError: it holds NaN or Inf.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise OutputError(
            f"{os.fspath(path)}: not written: {bad} of {array.size} numbers are not finite (NaN or Inf); check the values of the inputs"
        )
    return array


def finite_float32(path: str | os.PathLike[str], array: np.ndarray) -> np.ndarray:
    """The array in float32. Errors as for ``require_finite_result``, also for numbers that float32 cannot hold."""
    with np.errstate(over="ignore"):
        return require_finite_result(path, array.astype(np.float32))


def sha256(path: str | os.PathLike[str]) -> str:
    """Checksum of a file's bytes; of a folder, of the names and checksums of its files."""
    if os.path.isdir(path):
        lines = [f"{sha256(file)}  {file.name}\n" for file in sorted(Path(path).iterdir()) if file.is_file()]
        return hashlib.sha256(encode_text("".join(lines))).hexdigest()
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


WRITERS = 2
"""Threads that write aside: one compresses while the other waits for the disk."""

_aside: ContextVar[Callable[[Callable[[], None]], None] | None] = ContextVar("_aside", default=None)
"""Takes what is to be written by another thread."""


@contextlib.contextmanager
def written_aside() -> Iterator[None]:
    """Inside the block, ``write_atomically`` does not wait: other threads write. When the block ends, all files are written.

    Raises:
        OutputError: that of the first file that could not be written. The others are written.
    """
    pending: list[Future[None]] = []
    with ThreadPoolExecutor(WRITERS) as pool:
        before = _aside.set(lambda work: pending.append(pool.submit(work)))
        try:
            yield
        finally:
            _aside.reset(before)
    for work in pending:
        work.result()


def write_atomically(path: str | os.PathLike[str], data: bytes, encode: Callable[[bytes], bytes] = bytes) -> None:
    """Write to a temporary file in the same folder, read it back, then rename it. Inside ``written_aside``, other threads do.

    At any time the path holds the complete old file or the complete new one.

    Args:
        encode: makes the content of ``data``, e.g. compresses it.

    Raises:
        OutputError: the disk is full, the folder cannot be written, or the bytes read back differ.
    """
    aside, place = _aside.get() or (lambda work: work()), Path(path).absolute()
    _umask()
    aside(lambda: _write_now(place, encode(data)))


def _write_now(path: Path, data: bytes) -> None:
    try:
        with _temporary_file(path.parent) as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
            temporary = Path(f.name)
            if temporary.read_bytes() != data:
                raise OutputError(f"{path}: the bytes read back differ from those written; check the disk")
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{printable(path)}: cannot write it: {path_problem(path, error)}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text with ``write_atomically``."""
    write_atomically(path, encode_text(text))


def encode_text(text: str) -> bytes:
    """UTF-8. Bytes of names that are not UTF-8 become \\udcXX."""
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _temporary_file(folder: Path) -> Iterator[IO[bytes]]:
    """A new file in ``folder``, under a short name, so that it exists wherever the result's name can. It is locked while it is open."""
    f = _locked_file(folder)
    temporary.add(f.name)
    try:
        with f:
            yield f
    finally:
        with contextlib.suppress(OSError):
            os.unlink(f.name)
        temporary.discard(f.name)


def _locked_file(folder: Path) -> IO[bytes]:
    """A new temporary file, locked. It is made again if ``remove_abandoned`` of another process saw it before it was locked."""
    while True:
        f = tempfile.NamedTemporaryFile(dir=folder, prefix=".rdmm-", suffix=".part", delete=False)  # noqa: SIM115
        with contextlib.suppress(OSError):
            fcntl.flock(f, fcntl.LOCK_EX)
        if os.fstat(f.fileno()).st_nlink:
            return f
        f.close()


def remove_abandoned(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files that killed processes left in a folder: those that no process has locked."""
    for path in Path(folder).glob(".rdmm-*.part"):
        with contextlib.suppress(OSError), open(path, "rb") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@lru_cache(maxsize=1)
def _umask() -> int:
    """The process's mask. It can only be read by setting it, which is not for several threads at once: so it is read once, by the first."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


NO_PREFIX = (
    *(".nii", ".gz", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img"),
    *(".vtk", ".vtp", ".ply", ".mat", ".h5", ".txt", ".html", ".json"),
)
"""Endings of a name that was meant to be that of one file."""


@dataclass(frozen=True)
class Outputs:
    """The output files of one run: a prefix of their names, as in ANTs, or a folder (ends in /, or exists)."""

    prefix: str

    @classmethod
    def prepare(cls, out: str | os.PathLike[str], names: list[str], *, overwrite: bool) -> Outputs:
        """Make the folder, and check that every file can be written, before anything is computed.

        Temporary files that killed runs left in the folder are removed.

        Raises:
            ConfigError: ``out`` has the name of a file.
            OutputError: a file exists already, its name is too long, or the folder cannot be made or written.
        """
        text = os.fspath(out)
        is_folder = text.endswith(("/", os.sep)) or os.path.isdir(text)
        if not is_folder and text.lower().endswith(NO_PREFIX):
            raise ConfigError(
                f"{text}: the results are several files, so {option('out', '')} is a folder (ends in /) or the start of their names"
                " (out/run1_); for one image of a name of your own, use rdmm apply on the result"
            )
        self = cls(text if not is_folder else os.path.join(text, ""))
        folder = self.path("x").parent
        for name in names:
            require_free(self.path(name), overwrite=overwrite)
        try:
            if is_folder:
                _make_folder(folder)
            elif not os.path.isdir(folder):
                raise OutputError(f"{printable(folder)}: no such folder; make it, or end the name with / so that rdmm makes it")
            remove_abandoned(folder)
            with _temporary_file(folder):
                pass
        except (OSError, ValueError) as error:
            problem = f"{folder} is a file or a broken link" if isinstance(error, FileExistsError) else path_problem(folder, error)
            raise OutputError(f"{printable(folder)}: cannot write there: {problem}") from error
        return self

    @classmethod
    def check(cls, out: str | os.PathLike[str], names: list[str], *, overwrite: bool) -> None:
        """Raise OutputError where ``prepare`` would, but make no folder."""
        text = os.fspath(out)
        if not text.endswith(("/", os.sep)) or os.path.isdir(text):
            cls.prepare(out, names, overwrite=overwrite)
            return
        for name in names:
            require_free(Path(f"{text}{name}"), overwrite=overwrite)
        above = next(p for p in Path(text).absolute().parents if os.path.lexists(p))
        cls.prepare(os.path.join(above, ""), [], overwrite=True)

    def path(self, name: str) -> Path:
        return Path(f"{self.prefix}{name}")

    def remove(self, name: str) -> None:
        """Remove a file of an earlier run, if there is one. Raises OutputError if that is not possible."""
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path(name)}: cannot remove it: {path_problem(self.path(name), error)}") from error

    def name(self, path: Path) -> str:
        """The name without the prefix: the inverse of ``path``."""
        return os.fspath(path)[len(os.fspath(self.path("x"))) - 1 :]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to this prefix, until the context ends. What killed runs left in the folder is removed.

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
            raise OutputError(f"{self.prefix}: another run of rdmm is writing there; wait for it, or choose another name") from None
        except (OSError, NotImplementedError) as error:
            if not isinstance(error, NotImplementedError) and error.errno not in LOCKS_UNSUPPORTED:
                raise OutputError(f"{path}: cannot write it: {path_problem(path, error)}") from error
            log.warning("%s: this file system has no locks: make sure that no other run writes there", folder)
        temporary.add(os.fspath(path))
        remove_abandoned(folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder may be gone, which others report
                path.unlink()
            temporary.discard(os.fspath(path))
            lock.release()


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it. Path.mkdir(parents=True) cannot: it recurses, and paths may have 2000 parts."""
    for part in [*reversed(folder.parents), folder]:
        if not os.path.isdir(part):
            part.mkdir(exist_ok=True)


def require_free(path: Path, *, overwrite: bool) -> None:
    """Check that a file of this name can be written. Raises OutputError if it is a folder, too long, or exists without ``overwrite``."""
    try:
        status = _status(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{printable(path)}: cannot write it: {path_problem(path, error)}") from error
    if status is None:
        return
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{path}: is a folder, and a file of this name is to be written; remove it, or choose another name")
    if not overwrite:
        raise OutputError(f"{path}: exists already; choose another name or pass {option('overwrite')}")


def _status(path: Path) -> os.stat_result | None:
    """The status of a file, without following a link; None if there is no file. OSError if there can be none of this name."""
    try:
        return path.lstat()
    except FileNotFoundError:
        there = next(p for p in path.parents if os.path.isdir(p))
        for part in path.relative_to(there).parts:  # names in folders that are still to be made: the system has not looked at them
            with contextlib.suppress(FileNotFoundError):
                (there / part).lstat()
        return None


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check, before anything is computed, that one file can be written; return its path.

    Raises:
        OutputError: it is a directory, it exists already, its name is too long, or its folder is missing or cannot be written.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise OutputError(f"{path}: is a directory; name a file")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{printable(path.parent)}: no such folder; make it first")
    Outputs.prepare(path.parent / "", [path.name], overwrite=overwrite)
    return path
