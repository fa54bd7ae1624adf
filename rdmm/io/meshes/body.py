"""The bytes of a mesh file, read one after the other. Every count is compared with what is left before anything is read."""

from __future__ import annotations

import itertools
import re

import numpy as np

from rdmm.types import InputError

WORD = re.compile(rb"[^ \t\r\n\f\v]+")

WORDS_AT_ONCE = 1 << 16
"""Words that are converted to numbers together, so that text needs little more memory than its numbers."""


class Body:
    """Bytes, and the place ``at`` that is read next."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    @property
    def left(self) -> int:
        """The number of bytes that are not yet read."""
        return len(self.data) - self.at

    def require(self, count: int, size: int, what: str = "numbers") -> None:
        """Raise InputError if there cannot be ``count`` more values of ``size`` bytes each."""
        if count < 0:
            raise InputError(f"{count} {what} at byte {self.at}: a count must not be below 0")
        if count * size > self.left:
            raise InputError(f"cut short: {count} {what} expected at byte {self.at}, but only {self.left} bytes are left")

    def line(self) -> str | None:
        """The next line, without the white space around it; None at the end."""
        if self.at >= len(self.data):
            return None
        end = self.data.find(b"\n", self.at)
        end = len(self.data) if end < 0 else end
        text = self.data[self.at : end].decode("latin-1").strip()
        self.at = end + 1
        return text

    def text(self, count: int) -> np.ndarray:
        """The next ``count`` numbers of a text, float64."""
        if count:
            self.require(2 * count - 1, 1, "bytes of numbers")  # a digit and a space each
        out = np.empty(max(count, 0))
        words = WORD.finditer(self.data, self.at)
        for start in range(0, count, WORDS_AT_ONCE):
            found = list(itertools.islice(words, min(WORDS_AT_ONCE, count - start)))
            if len(found) < min(WORDS_AT_ONCE, count - start):
                raise InputError(f"cut short: {count} numbers expected, {start + len(found)} found")
            try:
                out[start : start + len(found)] = np.array([w.group() for w in found], dtype=np.float64)
            except ValueError as error:
                raise InputError(f"damaged after byte {self.at}: {error}") from error
            self.at = found[-1].end()
        return out

    def binary(self, count: int, dtype: np.dtype) -> np.ndarray:
        """The next ``count`` values of a type: float64 of numbers with a fraction, int64 of whole ones, else as they are."""
        self.require(count, dtype.itemsize)
        out = np.frombuffer(self.data, dtype, count, self.at)
        self.at += count * dtype.itemsize
        if dtype.names:
            return out
        with np.errstate(invalid="ignore"):  # signaling NaNs warn here; read_mesh rejects all NaNs
            return out.astype(np.float64 if dtype.kind == "f" else np.int64)

    def skip(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self.require(count, 1, "bytes")
        self.at += count
        return self.data[self.at - count : self.at]


def to_indices(numbers: np.ndarray) -> np.ndarray:
    """Vertex numbers as int64.

    Raises:
        InputError: a number is not whole, or too large.
    """
    if numbers.dtype == np.int64:
        return numbers
    wrong = ~(np.abs(numbers) <= 2.0**53) | (np.trunc(numbers) != numbers)
    if wrong.any():
        raise InputError(f"the vertices of cells must be whole numbers, not {numbers[np.argmax(wrong)]}")
    return numbers.astype(np.int64)


def typed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers in the type that a file states, or as they are where this type cannot hold them."""
    dtype = dtype.newbyteorder("=")
    if dtype.kind in "iu" and values.dtype.kind == "f":
        limits = np.iinfo(dtype)
        if not ((values >= limits.min) & (values <= limits.max) & (np.trunc(values) == values)).all():
            return values
    with np.errstate(over="ignore", invalid="ignore"):  # texts beyond float32; signaling NaNs
        return values.astype(dtype)
