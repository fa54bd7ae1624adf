"""Pre-weights h of the region-specific regularizer: h_i >= 0 and sum_i h_i^2 = 1 at every point, model (5)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.grid import Grid
from rdmm.types import ConfigError, Tensor, nearest


def normalize(p: Tensor) -> Tensor:
    """h_i = p_i^2 / |p^2|, model (5), for any p (b, n, *s). h is >= 0, has length 1, is smooth in p, and is exactly 0 where p_i is 0."""
    squares = p * p
    return squares / squares.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)


def parameters(h: Tensor) -> Tensor:
    """One p with normalize(p) = h. A pre-weight that is exactly 0 stays 0 in gradient steps."""
    return h.clamp_min(0).sqrt()


def constant(squares: Sequence[float], grid: Grid, like: Tensor) -> Tensor:
    """h = sqrt(squares) everywhere, (1, n, *s)."""
    h = torch.as_tensor(squares, dtype=like.dtype, device=like.device).sqrt()
    return h.view(1, -1, *(1,) * grid.ndim).expand(1, -1, *grid.shape).contiguous()


BACKGROUND = "background"
"""Name of all labels that no other entry of ``regions`` names."""


def region_rows(regions: Mapping[Any, Sequence[float]], count: int, key: str) -> dict[int | str, list[float]]:
    """The squared weights of each region, one number per Gaussian. Labels become whole numbers; ``background`` stays a word.

    Args:
        count: number of Gaussians.
        key: the setting, for errors.

    Raises:
        ConfigError: a name that is no label, or weights that are negative, do not sum to 1, or are not ``count`` numbers.
    """
    rows = {region_name(name, key): [float(x) for x in row] for name, row in regions.items()}
    for name, row in rows.items():
        if len(row) != count or not all(x >= 0 for x in row) or not abs(sum(row) - 1) <= 0.01:
            given = f"{row} (sum {sum(row):.4g})"
            raise ConfigError(f"{key}: the squared weights of {name} must be {count} numbers >= 0 that sum to 1, not {given}")
    return rows


def region_name(name: Any, key: str) -> int | str:
    """A label as a whole number, or ``background``.

    Raises:
        ConfigError: ``name`` is neither.
    """
    text = str(name)
    if text != BACKGROUND and not re.fullmatch(r"-?\d+", text):
        raise ConfigError(f"{key}: regions are labels (whole numbers) or {BACKGROUND}, not {text!r}{nearest(text, [BACKGROUND])}")
    return text if text == BACKGROUND else int(text)


def by_region(labels: Tensor, weights: Mapping[int, Sequence[float]], default: Sequence[float]) -> Tensor:
    """Squared pre-weights h^2 (b, n, *s) for a label map (b, 1, *s): ``weights[label]``, and ``default`` for other labels."""
    table = torch.tensor([list(default), *map(list, weights.values())], dtype=torch.float64)
    index = torch.zeros_like(labels[:, 0], dtype=torch.long)
    for i, label in enumerate(weights, 1):
        index[labels[:, 0] == label] = i
    squares = table / table.sum(1, keepdim=True)
    return squares.to(labels.device)[index].movedim(-1, 1)


def smooth(h: Tensor, sigma: float, grid: Grid) -> Tensor:
    """Weights w_i = G_sigma * h_i, model (6); constants stay constant up to the boundary."""
    return gaussian(h, sigma, grid)


def local_sigma(w: Tensor, sigmas: Sequence[float]) -> Tensor:
    """sigma(x) = sqrt(sum_i w_i^2 sigma_i^2), model (9): (b, 1, *s), in the unit of ``sigmas``."""
    s2 = torch.as_tensor(sigmas, dtype=w.dtype, device=w.device).square().view(1, -1, *(1,) * (w.ndim - 2))
    return (w.square() * s2).sum(1, keepdim=True).sqrt()
