"""A pair as a network sees it."""

from __future__ import annotations

from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.types import InputError


def at_training_resolution(pair: Pair[Image], ndim: int, channels: int, resolution: int) -> Pair[Image]:
    """The pair at the resolution that a network was trained at: no more than ``resolution`` voxels along the longest edge.

    Raises:
        InputError: images of another kind than the network's.
    """
    kind = "shapes"
    if isinstance(pair.fixed, Image):
        kind = f"{pair.fixed.grid.ndim}D images of {pair.fixed.data.shape[1]} channels"
    wanted = f"{ndim}D images of {channels} channels"
    if kind != wanted:
        raise InputError(f"this network is for {wanted}, not for {kind}; give a model that was trained on such images (--weights)")
    return pair.scaled(min(1.0, resolution / max(pair.fixed.grid.shape)))
