"""Running out of memory: each library has its own error; here they become ResourceError. Imports no torch, as the terminal uses it."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

from rdmm.types import ResourceError

WORDS = re.compile(
    r"out of memory|not enough memory|bad_alloc|alloc_failed|allocation failed|failed to map segment"
    r"|(can't|cannot|could not|unable to|failed to) allocate",
    re.IGNORECASE,
)
"""What torch (CPU and CUDA), MKL, cuBLAS, cuFFT and the loader of libraries write where an allocation fails."""

ADVICE = "use smaller images, smaller optimizer.scales or optimizer.shooting, fewer processes at a time, or a machine with more memory"


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Inside the block, or in the decorated function, an allocation that fails raises ResourceError.

    Raises:
        ResourceError: what the library said, the largest memory that the process has used, and what to do.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not _is_about_memory(error):
            raise
        from rdmm.runtime.resources import peak_memory

        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ResourceError(f"out of memory ({said}); the process has used up to {peak_memory() / 2**30:.1f} GiB; {ADVICE}") from error


def _is_about_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return not isinstance(error, OSError) and WORDS.search(str(error)) is not None
