"""Interpolation with a windowed sinc on CPU, compiled by numba: each point takes (2 radius)^d voxels."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange

from rdmm.kernels.compiled import compiled
from rdmm.types import Tensor

POINTS_OF_A_TASK = 1024


@compiled(inline="always")
def _weigh(p, n, radius, weight, at):  # type: ignore[no-untyped-def]
    """Weights of the 2 radius voxels around a coordinate p in voxels, sinc(x) (0.54 + 0.46 cos(pi x / radius)); outside is the edge."""
    low = np.floor(p)
    for t in range(2 * radius):
        k = low + t + 1 - radius
        x = np.pi * (p - k)
        weight[t] = 1.0 if x == 0 else np.sin(x) / x * (0.54 + 0.46 * np.cos(x / radius))
        at[t] = int(min(max(k, 0.0), n - 1.0))


@compiled(parallel=True)
def _interpolate(values, index, radius, out):  # type: ignore[no-untyped-def]
    """Write values (x, y, z) at voxel indices (3, n) to out (n,). A third axis of one voxel is not looked at."""
    depth = 1 if values.shape[2] == 1 else 2 * radius
    for task in prange((len(out) + POINTS_OF_A_TASK - 1) // POINTS_OF_A_TASK):
        weight, at = np.ones((3, 2 * radius)), np.zeros((3, 2 * radius), np.int64)
        for j in range(task * POINTS_OF_A_TASK, min(len(out), (task + 1) * POINTS_OF_A_TASK)):
            for axis in range(2 if depth == 1 else 3):
                _weigh(index[axis, j], values.shape[axis], radius, weight[axis], at[axis])
            total = 0.0
            for a in range(2 * radius):
                for b in range(2 * radius):
                    line = 0.0
                    for c in range(depth):
                        line += weight[2, c] * values[at[0, a], at[1, b], at[2, c]]
                    total += weight[0, a] * weight[1, b] * line
            out[j] = total


def windowed_sinc(values: Tensor, index: Tensor, radius: int) -> Tensor:
    """Values (n,) in float64 of an image (*s) at voxel indices (d, n), which are finite."""
    volume, points = values.double().numpy(), index.double().numpy()
    if volume.ndim == 2:
        volume, points = volume[..., None], np.concatenate([points, np.zeros_like(points[:1])])
    out = np.empty(points.shape[1])
    _interpolate(np.ascontiguousarray(volume), np.ascontiguousarray(points), radius, out)
    return torch.from_numpy(out)
