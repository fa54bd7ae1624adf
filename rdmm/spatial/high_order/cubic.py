"""Cubic sampling: the polynomial through the four voxels nearest to a point, along each axis."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from rdmm.kernels.available import has_kernels, is_on_host
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor


def sample(values: Tensor, points: Tensor, grid: Grid) -> Tensor:
    """Interpolate ``values`` (b, c, *s) on ``grid`` at ``points`` (b, d, *t), in domain units of its frame; (b, c, *t).

    The error is of fourth order in the voxel. Beside the walls the second difference at the wall is taken as 0; beyond them the value is
    that of the nearest edge. A batch of 1, of values or points, is expanded.

    Raises:
        DivergenceError: a point is not finite. On other devices than the CPU, its value is NaN instead.
    """
    if has_kernels(values):
        from rdmm.kernels.pointwise import cubic_sampling

        return cubic_sampling.sample(values, points, grid.spacing)
    if is_on_host(points):
        ops.require_finite(points, "a map")
    batch = max(len(values), len(points))
    finite = points.isfinite().all(1, keepdim=True)
    points = torch.where(finite, points, 0).expand(batch, *points.shape[1:])
    return torch.where(finite, _Sample.apply(values.expand(batch, *values.shape[1:]), points, grid.spacing), math.nan)


def compose(u: Tensor, w: Tensor, grid: Grid, identity: Tensor) -> Tensor:
    """Displacement of (id + u) ∘ (id + w); displacements (b, d, *s) in domain units, constant outside the grid."""
    return w + sample(u, identity + w, grid)


def _weights(points: Tensor, spacing: tuple[float, ...], shape: torch.Size) -> list[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Of each axis: the four voxels (b, k), their weights, and the slopes of these by the point, for points (b, d, k)."""
    out = []
    for x, h, n in zip(points.unbind(1), spacing, shape, strict=True):
        p = (x / h).clamp(0, n - 1)
        low = p.floor().clamp(0, max(n - 2, 0))
        b = p - low
        a = 1 - b
        before, after = (low > 0).to(b), (low < n - 2).to(b)
        ca, cb = before * (a**3 - a) / 6, after * (b**3 - b) / 6
        da, db = before * (1 - 3 * a * a) / 6, after * (3 * b * b - 1) / 6
        inside = ((x > 0) & (x < (n - 1) * h)).to(b) / h
        voxels = [(low.long() + i).clamp(0, n - 1) for i in (-1, 0, 1, 2)]
        weights = [ca, a - 2 * ca + cb, b + ca - 2 * cb, cb]
        slopes = [s * inside for s in (da, -1 - 2 * da + db, 1 + da - 2 * db, db)]
        out.append((voxels, weights, slopes))
    return out


class _Sample(torch.autograd.Function):
    """Cubic sampling in torch, for devices without compiled kernels; nothing is kept of the 4^d voxels of a point."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(values, points)
        ctx.spacing = spacing
        axes, flat = _weights(points.flatten(2), spacing, values.shape[2:]), values.flatten(2)
        out = flat.new_zeros(*flat.shape[:2], points[0, 0].numel())
        for taps in itertools.product(range(4), repeat=len(axes)):
            index, weight, _ = _tap(axes, taps, values.shape[2:])
            out += weight.unsqueeze(1) * flat.gather(2, index.unsqueeze(1).expand(-1, flat.shape[1], -1))
        return out.view(*out.shape[:2], *points.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, points = ctx.saved_tensors
        axes, flat, g = _weights(points.flatten(2), ctx.spacing, values.shape[2:]), values.flatten(2), grad.flatten(2)
        by_values = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        by_points = torch.zeros_like(points.flatten(2)) if ctx.needs_input_grad[1] else None
        for taps in itertools.product(range(4), repeat=len(axes)):
            index, weight, slopes = _tap(axes, taps, values.shape[2:])
            index = index.unsqueeze(1).expand(-1, flat.shape[1], -1)
            if by_values is not None:
                by_values.scatter_add_(2, index, weight.unsqueeze(1) * g)
            if by_points is not None:
                by_points += slopes * (g * flat.gather(2, index)).sum(1, keepdim=True)
        return (
            None if by_values is None else by_values.view(values.shape),
            None if by_points is None else by_points.view(points.shape),
            None,
        )


def _tap(axes: list[tuple[list[Tensor], list[Tensor], list[Tensor]]], taps: tuple[int, ...], shape: torch.Size) -> tuple[Tensor, ...]:
    """One of the 4^d voxels of the points: its place in memory (b, k), its weight (b, k), and the slopes of the weight (b, d, k)."""
    index = torch.zeros_like(axes[0][0][0])
    weight = torch.ones_like(axes[0][1][0])
    for n, tap, (voxels, weights, _) in zip(shape, taps, axes, strict=True):
        index, weight = index * n + voxels[tap], weight * weights[tap]
    slopes = []
    for axis in range(len(axes)):
        slope = axes[axis][2][taps[axis]]
        for other, tap in enumerate(taps):
            slope = slope if other == axis else slope * axes[other][1][tap]
        slopes.append(slope)
    return index, weight, torch.stack(slopes, 1)
