"""Sums and log-sums over all pairs of two sets of points, without the full matrix.

KeOps computes them if it is installed and there are enough pairs; otherwise torch does, in blocks. Only this module imports KeOps.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from rdmm.types import Tensor

log = logging.getLogger(__name__)

BLOCK_PAIRS = 2**22
"""Largest number of pairs that one block of the torch version holds: 16 MB of float32. Not measured."""

MIN_KEOPS_PAIRS = 2**24
"""Number of pairs from which KeOps is used: with fewer, its compilation costs more than it saves. The exact number is not measured."""


@lru_cache
def has_keops() -> bool:
    """Whether KeOps is installed and starts here: it needs a cache folder that it can write. It is told to print nothing."""
    if importlib.util.find_spec("pykeops") is None:
        return False
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # importing it prints: standard output is for results
            import pykeops

            pykeops.set_verbose(False)
    except Exception as error:  # whatever stops its start: torch computes the same sums
        log.warning("KeOps cannot start (%s): torch computes the sums over pairs of points, more slowly", error)
        return False
    return True


Pairwise = Callable[[Any, Any], Any]
"""A function of pairs: rows (n, 1, d) and columns (1, m, d), torch tensors or KeOps' LazyTensors, to (n, m)."""


def half_squared_distance(x: Any, y: Any) -> Any:
    """|x - y|^2 / 2."""
    return ((x - y) ** 2).sum(-1) * 0.5


def reduce_pairs(formula: Pairwise, x: Tensor, y: Tensor, b: Tensor, *, log_sum: bool) -> Tensor:
    """Reduce over j: sum_j formula(x_i, y_j) b_j, or with ``log_sum`` log sum_j exp(formula(x_i, y_j) + b_j).

    Gradients flow to x, y and b. Memory: one block.

    Args:
        x, y: points (n, d) and (m, d).
        b: (m, e); with ``log_sum`` (m,).

    Returns:
        (n, e); with ``log_sum`` (n,).
    """
    if len(x) * len(y) >= MIN_KEOPS_PAIRS and has_keops():
        return _with_keops(formula, x, y, b, log_sum)

    def block(rows: Tensor, y: Tensor, b: Tensor) -> Tensor:
        values = formula(rows.unsqueeze(1), y.unsqueeze(0))
        return torch.logsumexp(values + b, 1) if log_sum else values @ b

    step = max(1, BLOCK_PAIRS // len(y))
    if len(x) <= step:
        return block(x, y, b)
    return torch.cat([checkpoint(block, x[k : k + step], y, b, use_reentrant=False) for k in range(0, len(x), step)])


def _with_keops(formula: Pairwise, x: Tensor, y: Tensor, b: Tensor, log_sum: bool) -> Tensor:
    from pykeops.torch import LazyTensor

    values = formula(LazyTensor(x.unsqueeze(1).contiguous()), LazyTensor(y.unsqueeze(0).contiguous()))
    column = LazyTensor(b.view(1, len(b), -1).contiguous())
    if log_sum:
        return (values + column).logsumexp(1).view(-1)
    return (values * column).sum(1)
