"""Judges a case: it ends with a result that keeps the laws, or with one RdmmError in one line, at once and in little memory."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

from fuzzing.case import Case
from rdmm.types import RdmmError

SECONDS, BYTES = 5, 2**30
"""CPU time and address space of one case."""


class TooSlowError(BaseException):
    """A case has used its CPU time. No handler of Exception catches it."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Inside the block, TooSlowError after SECONDS of CPU time, without that of compiling; MemoryError after BYTES more of memory."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not any("/numba/" in f.f_code.co_filename for f, _ in traceback.walk_stack(frame)):
            raise TooSlowError
        signal.setitimer(signal.ITIMER_PROF, SECONDS)

    before = signal.signal(signal.SIGPROF, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


class _Lines(logging.Handler):
    """Keeps the messages that rdmm logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    handler, log = _Lines(), logging.getLogger("rdmm")
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield handler.lines
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


def judge(case: Case) -> tuple[str | None, str | None]:
    """What is wrong with the outcome of a case, and the message with which it was refused; None for neither."""
    with tempfile.TemporaryDirectory(prefix="rdmm-fuzz-") as name:
        folder = Path(name)
        for file, data in case.files.items():
            (folder / file).write_bytes(data)
        refusal = None
        with _logged() as lines, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                with limited():
                    case.run(folder)
            except RdmmError as error:
                refusal = str(error)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                return _where(error), None
        wrong = [_fault_of_line(text, case, folder) for text in [*lines, *([] if refusal is None else [refusal])]]
        escaped = [w for w in warned if not issubclass(w.category, DeprecationWarning)]
        wrong += [f"a warning escapes: {w.message} ({Path(w.filename).name}:{w.lineno})" for w in escaped]
        return next(filter(None, wrong), None), refusal


def _fault_of_line(text: str, case: Case, folder: Path) -> str | None:
    """What is wrong with a message."""
    length = len(text) - sum(text.count(name) * len(name) for name in {str(folder), *case.files})
    if not text.strip() or not text.isprintable():
        return f"not one line of printable text: {text[:300]!r}"
    return f"a message of {len(text)} characters: {text[:300]}" if length > case.longest else None


def _where(error: BaseException) -> str:
    """An error, and the last lines of code that it went through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/fuzzing/oracle.py" not in f.filename]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    return f"{type(error).__name__}: {str(error)[:200]} ({places})"
