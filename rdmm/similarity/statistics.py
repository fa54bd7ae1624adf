"""Means and variances over the voxels that the masks of two images have in common."""

from __future__ import annotations

import math

import torch

from rdmm.kernels.available import is_on_host
from rdmm.spatial.image import Image
from rdmm.spatial.ops import total
from rdmm.types import DivergenceError, InputError, Tensor


def overlap(moved: Image, target: Image) -> Tensor | None:
    """Weight (b, 1, *s) of each voxel: the product of the masks, or None if neither image has one.

    Raises:
        InputError: the images do not have the same shape.
        DivergenceError: the masks do not overlap; a line search then shortens its step. On other devices than the CPU, where reading a
            value would make the host wait, the weights are NaN instead, and so is the energy.
    """
    for x in (moved, target):
        if not isinstance(x, Image):
            raise InputError(
                f"this similarity compares images, not {type(x).__name__}; for shapes: sinkhorn_points, kernel, energy, hausdorff, softmin"
            )
    if moved.data.shape[1:] != target.data.shape[1:]:
        raise InputError(
            f"a similarity compares images of one shape, not {tuple(moved.data.shape[1:])} and {tuple(target.data.shape[1:])}"
            " (channels, then voxels)"
        )
    masks = [m for m in (moved.mask, target.mask) if m is not None]
    if not masks:
        return None
    weight = masks[0] if len(masks) == 1 else masks[0] * masks[1]
    overlaps = total(weight) > 1
    if not is_on_host(weight):
        return torch.where(overlaps.view(-1, *(1,) * (weight.ndim - 1)), weight, math.nan)
    if not bool(overlaps.all()):
        raise DivergenceError("the masks of the two images do not overlap: nothing to compare")
    return weight


def mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean of x (b, c, *s) over space, (b, c, 1...); with ``weight`` (b, 1, *s) or None."""
    shape = (*x.shape[:2], *(1,) * (x.ndim - 2))
    if weight is None:
        return (total(x, 2) / x[0, 0].numel()).view(shape)
    return (total(x * weight, 2) / total(weight)[:, None]).view(shape)


def variances_and_covariance(a: Tensor, b: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Variances of a and of b, and their covariance, over space; (b, c) each.

    The means are detached, since the derivatives with respect to them are 0.
    """
    a, b = (x - mean(x, weight).detach() for x in (a, b))
    return tuple(mean(x, weight).flatten(1) for x in (a * a, b * b, a * b))  # type: ignore[return-value]


VARIANCE_FLOOR = torch.finfo(torch.float32).tiny ** 0.5
"""Added to variances before a division or a root. Its square is the smallest normal float32."""


def standardized(x: Tensor, weight: Tensor | None) -> Tensor:
    """x of mean 0 and variance 1, both constants for the gradient: for measures that do not change with the offset and the scale of x."""
    x = x - mean(x, weight).detach()
    return x / (mean(x**2, weight) + VARIANCE_FLOOR).sqrt().detach()
