"""The input of a network, and pre-weights from its output."""

from __future__ import annotations

import torch

from rdmm.regularizer.smoother import MultiGaussian
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import InputError, Tensor, option


def require_trained_kind(pair: Pair, ndim: int, channels: int) -> None:
    """Raise InputError if a network was trained for another number of dimensions or channels."""
    kind = _images(pair.fixed.grid.ndim, pair.fixed.data.shape[1]) if isinstance(pair.fixed, Image) else "shapes"
    wanted = _images(ndim, channels)
    if kind != wanted:
        weights = option("weights", "")
        raise InputError(
            f"this network is for {wanted}, not for {kind}; give a model that was trained on such images ({weights}):"
            f" without {weights}, the one that comes with rdmm is used"
        )


def _images(ndim: int, channels: int) -> str:
    return f"{ndim}D images" + (f" of {channels} channels" if channels > 1 else "")


def at_training_resolution(pair: Pair[Image], ndim: int, channels: int, resolution: int) -> Pair[Image]:
    """The pair resampled to at most ``resolution`` voxels along its longest edge, as in training.

    Raises:
        InputError: the network was trained for another number of dimensions or channels.
    """
    require_trained_kind(pair, ndim, channels)
    return pair.scaled(min(1.0, resolution / max(pair.fixed.grid.shape)))


def preweights(logits: Tensor, smoother: MultiGaussian) -> Tensor:
    """h (b, n, *s) with h^2 = softmax(log w^2 + logits), w^2 the smoother's squared weights."""
    own = torch.tensor(smoother.weights, dtype=logits.dtype, device=logits.device).clamp_min(1e-4).log()
    return torch.softmax(logits + own.view(1, -1, *(1,) * (logits.ndim - 2)), 1).clamp_min(1e-12).sqrt()
