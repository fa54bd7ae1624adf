"""The errors, and other names that every module shares.

Docstrings write tensor shapes with these letters: ``b`` batch, ``c`` channels, ``d`` dimensions (2 or 3), ``n`` Gaussians or
points, ``*s`` the axes of an image grid, ``*t`` the axes of any set of points.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LENGTHS",
    "MAX_FLOAT32",
    "MAX_SEED",
    "MAX_THREADS",
    "ConfigError",
    "DivergenceError",
    "InputError",
    "OutputError",
    "RdmmError",
    "ResourceError",
    "Tensor",
    "counted",
    "nearest",
    "option",
    "options_are_typed",
    "repr_with_shapes",
    "require_finite_fields",
    "require_length",
    "require_whole",
]


def __getattr__(name: str) -> Any:
    """Load torch when ``Tensor`` is first used, so that the command line starts without torch."""
    if name == "Tensor":
        from torch import Tensor

        return Tensor
    raise AttributeError(f"module 'rdmm.types' has no attribute {name!r}")


class RdmmError(Exception):
    """Base of the errors that a user can correct. The message is one line; ``exit_code`` is the exit code of a command.

    Characters of a file or a name that do not print, which could control a terminal, are shown as escapes (\\x1b).
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        line = " ".join(part.strip() for part in str(message).splitlines())
        super().__init__(line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class ConfigError(RdmmError):
    """A key, value or combination of settings that cannot be used."""

    exit_code = 2


class InputError(RdmmError):
    """A file or array that cannot be used."""

    exit_code = 3


class OutputError(RdmmError):
    """A result that cannot be written."""

    exit_code = 3


class DivergenceError(RdmmError):
    """A trajectory or an energy became NaN or infinite."""

    exit_code = 5


class ResourceError(RdmmError):
    """Not enough memory, or a process of the run is gone."""

    exit_code = 3


MAX_SEED = 2**64 - 1
"""Largest seed of torch's generators."""

MAX_THREADS = 4096
"""More threads than any machine has; torch cannot start arbitrarily many."""


LENGTHS = (1e-9, 1e9)
"""Shortest and longest length that is computed with: its square, too, is a number of float32. Not measured."""

MAX_FLOAT32 = 3.4e38
"""Largest number of settings: computations are in float32."""


def require_length(name: str, value: float) -> None:
    """Raise ConfigError unless ``value``, the setting ``name``, is a length within LENGTHS."""
    if not LENGTHS[0] <= value <= LENGTHS[1]:
        raise ConfigError(f"{name} is a length > 0, from {LENGTHS[0]:g} to {LENGTHS[1]:g}, not {value}")


def require_whole(name: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int; numpy's integers are whole numbers, too.

    Raises:
        ConfigError: it is no whole number in [low, high]; ``name`` says which argument.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ConfigError(f"{name} must be at least {low} and at most {high}, a whole number; got {value!r}"[:300])
    return number


def require_finite_fields(settings: Any) -> None:
    """Check the numbers among the fields of a dataclass, and in its lists and mappings.

    Raises:
        ConfigError: one is NaN or infinite.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not all(math.isfinite(x) for x in _floats(value)):
            raise ConfigError(f"{type(settings).__name__}: {field.name} must be finite, not {value}")


def repr_with_shapes(thing: Any) -> str:
    """The ``__repr__`` of a dataclass whose tensors and arrays are shown by their shapes; None is left out."""
    given = {f.name: value for f in dataclasses.fields(thing) if f.repr and (value := getattr(thing, f.name)) is not None}
    shown = [f"{k} {tuple(v.shape)}" if hasattr(v, "shape") and hasattr(v, "dtype") else f"{k}={v!r}" for k, v in given.items()]
    return f"{type(thing).__name__}({', '.join(shown)})"


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _floats(item)


_typed: frozenset[str] | None = frozenset()
"""The options that are typed on the command line, and are no Python arguments; None: all."""


@contextlib.contextmanager
def options_are_typed(*names: str) -> Iterator[None]:
    """Inside the block, ``option`` words the options of the command line: those of ``names``; without names, all."""
    global _typed
    before, _typed = _typed, frozenset(names) or None
    try:
        yield
    finally:
        _typed = before


def option(name: str, value: str | None = None) -> str:
    """How the user of this process writes an option: ``--nan zero`` on the command line, ``nan="zero"`` in Python.

    Every message that names an option calls this, so that it holds for the command line and for Python.

    Args:
        name: the Python argument. The option has dashes for its underscores, and none at its end (``from_``).
        value: None for a switch; "" to name the option alone; in capitals if it stands for the user's own value.
    """
    if _typed is None or name in _typed:
        return f"--{name.rstrip('_').replace('_', '-')}{f' {value}' if value else ''}"
    if value is None:
        return f"{name}=True"
    return name if not value else f"{name}={value if value.isupper() or _is_number(value) else json.dumps(value)}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def counted(number: int, noun: str) -> str:
    """``1 voxel``, ``2 voxels``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def nearest(word: str, known: Iterable[str], likeness: float = 0.5) -> str:
    """``" (did you mean 'x'?)"`` for the closest known word, or an empty string if none has this ``likeness`` (1: the same word)."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f" (did you mean {close[0]!r}?)" if close else ""
