"""Interpolations between voxels, as ANTs and ITK define them. ``ops.sample`` has the two that registration needs: linear and nearest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch

from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor

Interpolation = Literal["linear", "nearest", "bspline", "sinc", "generic-label"]
"""Names of the interpolations. ``bspline`` is cubic, with the prefilter; ``sinc`` has a Hamming window of RADIUS voxels."""

INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
FOR_LABELS: tuple[Interpolation, ...] = ("nearest", "generic-label")
"""Interpolations that yield values of the image and no others, so that labels stay labels."""

RADIUS = 5
"""Voxels on each side that the window of ``sinc`` reaches, as in SimpleITK's HammingWindowedSinc."""

POINTS_AT_ONCE = 2**18
"""Points that are interpolated at once: the weights of the corners of all points would not fit into memory. Not measured."""


def interpolate(values: Tensor, points: Tensor, grid: Grid, mode: Interpolation) -> Tensor:
    """Values (1, c, *t) of an image (1, c, *s) at points (1, d, *t), in domain units.

    Outside the grid they are those at its nearest edge; ``bspline`` mirrors the image there, and ``sinc`` repeats its edge, as in ITK.
    Both go beyond the values of the image near steps (ringing).
    """
    ops.require_finite(points, "a map")
    if mode == "linear":
        return ops.sample(values, points.to(values), grid)
    if mode == "nearest":
        return ops.sample(values, points.to(values) if values.is_floating_point() else points, grid, mode="nearest")
    index = points.double() / torch.tensor(grid.spacing, dtype=torch.float64).view(1, -1, *(1,) * (points.ndim - 2))
    pieces = index.flatten(2)[0].split(POINTS_AT_ONCE, 1)
    compute = {"bspline": _bspline, "sinc": _sinc, "generic-label": _generic_label}[mode]
    channels = [compute(channel, pieces) for channel in values[0]]
    return torch.stack(channels).view(1, len(channels), *points.shape[2:])


def _inside(index: Tensor, shape: torch.Size) -> Tensor:
    """Voxel indices (d, n), moved to the nearest edge where they are outside."""
    far = torch.tensor(shape, dtype=index.dtype).view(-1, 1) - 1
    return torch.minimum(index.clamp_min(0), far)


def _bspline(channel: Tensor, pieces: tuple[Tensor, ...]) -> Tensor:
    """Cubic B-spline through the voxels (*s), mirrored at the edges as in ITK."""
    from scipy.ndimage import map_coordinates, spline_filter

    coefficients = spline_filter(channel.double().numpy(), order=3, mode="mirror")
    return torch.cat(
        [torch.from_numpy(map_coordinates(coefficients, p.numpy(), order=3, mode="mirror", prefilter=False)) for p in pieces]
    ).to(channel)


def _sinc(channel: Tensor, pieces: tuple[Tensor, ...]) -> Tensor:
    """A sinc with a Hamming window of RADIUS voxels along each axis; voxels outside are those at the edge."""
    from rdmm.kernels.windowed_sinc import windowed_sinc

    return torch.cat([windowed_sinc(channel, piece, RADIUS) for piece in pieces]).to(channel)


def _product(weight: Tensor, offsets: tuple[int, ...]) -> Tensor:
    return math.prod((weight[k, j] for k, j in enumerate(offsets)), start=torch.ones(()))


def _flat_index(at: Tensor, offsets: tuple[int, ...], shape: torch.Size) -> Tensor:
    index = torch.zeros_like(at[0, 0])
    for k, j in enumerate(offsets):
        index = index * shape[k] + at[k, j]
    return index


def _generic_label(channel: Tensor, pieces: tuple[Tensor, ...]) -> Tensor:
    """The label with the largest linear weight among the corners of the cell; of equal ones the lowest."""
    flat, shape = channel.flatten(), channel.shape
    out = []
    for piece in pieces:
        labels, weights = zip(*_corners(flat, _inside(piece, shape), shape), strict=True)
        best, chosen = torch.full_like(weights[0], -1.0), labels[0].clone()
        for label in labels:
            votes = sum((w * (other == label) for other, w in zip(labels, weights, strict=True)), torch.zeros_like(best))
            better = (votes > best + TIE) | ((votes > best - TIE) & (label < chosen))
            best, chosen = torch.where(better, votes, best), torch.where(better, label, chosen)
        out.append(chosen)
    return torch.cat(out)


TIE = 1e-6
"""Weights that are this close are equal: coordinates are rounded."""


def _corners(flat: Tensor, p: Tensor, shape: torch.Size) -> Iterator[tuple[Tensor, Tensor]]:
    """Value and linear weight (n,) of each corner of the cells around voxel indices p (d, n)."""
    low = torch.minimum(p.floor(), torch.tensor(shape, dtype=p.dtype).view(-1, 1) - 2).clamp_min(0)
    fraction = p - low
    at = torch.stack([low, low + 1], 1).long()
    weight = torch.stack([1 - fraction, fraction], 1)
    for offsets in itertools.product((0, 1), repeat=len(shape)):
        yield flat[_flat_index(at, offsets, shape)], _product(weight, offsets)
