"""The input of a network."""

from __future__ import annotations

from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import InputError, option


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
