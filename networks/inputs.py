"""The input of a network."""

from __future__ import annotations

from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import InputError


def require_trained_kind(pair: Pair, ndim: int, channels: int) -> None:
    """Raise InputError if a network was trained for another number of dimensions or channels."""
    kind = "shapes"
    if isinstance(pair.fixed, Image):
        kind = f"{pair.fixed.grid.ndim}D images of {pair.fixed.data.shape[1]} channels"
    wanted = f"{ndim}D images of {channels} channels"
    if kind != wanted:
        raise InputError(f"this network is for {wanted}, not for {kind}; give a model that was trained on such images (--weights)")


def at_training_resolution(pair: Pair[Image], ndim: int, channels: int, resolution: int) -> Pair[Image]:
    """The pair resampled to at most ``resolution`` voxels along its longest edge, as in training.

    Raises:
        InputError: the network was trained for another number of dimensions or channels.
    """
    require_trained_kind(pair, ndim, channels)
    return pair.scaled(min(1.0, resolution / max(pair.fixed.grid.shape)))
