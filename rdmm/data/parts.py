"""The parts of the images that are registered: further images of the two subjects (``--also``), and labels as codes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from rdmm import io
from rdmm.data.given import Also
from rdmm.io.images import NanPolicy
from rdmm.io.in_memory import require_image_source
from rdmm.io.nifti import Source
from rdmm.runtime.resources import require_memory
from rdmm.spatial.grid import Grid, require_one_dimension
from rdmm.spatial.image import Image, Part, joined
from rdmm.spatial.label_codes import encoded, shared_labels
from rdmm.spatial.label_map import is_label_map
from rdmm.spatial.pair import Pair
from rdmm.spatial.placement import require_same_plane
from rdmm.spatial.transform import Identity
from rdmm.types import ConfigError, InputError, option, require_finite_fields

log = logging.getLogger(__name__)

LABEL_WEIGHT = 2.0
"""Weight of 1 - Dice of the labels' codes against the similarity of the images. Measured (docs/images.md)."""

MAX_OFFSET = 0.01
"""Grids whose voxels are this close, in voxels, are the same: tools round affines. Not measured."""

BYTES_PER_CHANNEL = 40
"""Peak memory of a voxel of a further channel. Not measured."""


@dataclass(frozen=True)
class Labels:
    """What labels do in a registration.

    Args:
        guide_weight: weight of 1 - Dice of ``fixed_labels`` and ``moving_labels`` against the similarity; 0: they only measure.
        as_images: whether a fixed and a moving image that are label maps are registered as images of their numbers.
    """

    guide_weight: float = 0.0
    as_images: bool = False

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if not self.guide_weight >= 0:
            raise ConfigError(f"guide_weight must be >= 0, not {self.guide_weight}")


@dataclass(frozen=True, eq=False)
class Contrast:
    """A further image of each subject, on grids of their own, and the weight of their comparison (that of FIXED and MOVING is 1)."""

    fixed: Image
    moving: Image
    weight: float


def read_contrasts(also: Sequence[Also], pair: Pair[Image], nan: NanPolicy, *, strict: bool) -> list[Contrast]:
    """Read the further images. Those on another grid than FIXED or MOVING are resampled into it, which the log says.

    Raises:
        InputError: a file cannot be used, has no overlap with FIXED or MOVING, or the two have different numbers of channels.
    """
    found = []
    for k, given in enumerate(also, 2):
        images = []
        for role, source, first in (("fixed", given.fixed, pair.fixed), ("moving", given.moving, pair.moving)):
            name = f"{role}_{k}"
            require_image_source(source, name)
            image = io.read_image(source, name=name, nan=nan, strict=strict).canonical()
            shown = os.fspath(source) if isinstance(source, str | os.PathLike) else name
            require_one_dimension({shown: image.grid.ndim, role: first.grid.ndim})
            require_same_plane(image.grid.placement, first.grid.placement, f"{shown} and {role}")
            if not _is_same_grid(image.grid, first.grid):
                log.info("%s is on another grid than %s: resampled into it, by their headers", shown, role)
                moved = _onto(image, first.grid)
                if moved.mask is not None and not bool(moved.mask.any()):
                    raise InputError(f"{shown} does not overlap the {role} image in world space; they must be of one subject and position")
            images.append(image)
        if images[0].data.shape[1] != images[1].data.shape[1]:
            counts = " and ".join(str(x.data.shape[1]) for x in images)
            raise InputError(f"fixed_{k} and moving_{k} have {counts} channels; give images of equally many")
        found.append(Contrast(images[0], images[1], given.weight))
    return found


def _is_same_grid(a: Grid, b: Grid) -> bool:
    return a.shape == b.shape and a.offset(b) <= MAX_OFFSET


def _onto(image: Image, grid: Grid) -> Image:
    """An image on another grid, after a low-pass if that is coarser. What is outside the image's field of view is outside the mask."""
    if _is_same_grid(image.grid, grid):
        return replace(image, grid=grid)
    fine = image.scaled(min(1.0, min(image.grid.voxel) / min(grid.voxel)))
    mask = torch.ones_like(fine.data[:, :1]) if fine.mask is None else fine.mask
    moved = replace(fine.inpainted(), mask=mask).moved_by(Identity(), grid)
    return moved if moved.mask is None or not bool((moved.mask == 1).all()) else replace(moved, mask=None)


def _masked(image: Image, first: Image) -> Image:
    """An image on the grid of ``first``, with both masks."""
    masks = [m for m in (image.mask, first.mask) if m is not None]
    return replace(image, mask=masks[0] * masks[1] if len(masks) == 2 else masks[0] if masks else None)


def read_label_map(image: Image, source: Source | Image, *, strict: bool) -> Image | None:
    """An image that was read from ``source``, with exact labels, if it is a label map by its voxels (``is_label_map``); otherwise None.

    A mask, of two values, is an image: its intensities say all.
    """
    array = image.data[0, 0].numpy()
    is_mask = bool(((array == array.min()) | (array == array.max())).all())
    if image.data.shape[1] != 1 or image.mask is not None or is_mask or not is_label_map(array):
        return None
    return io.read_labels(source, strict=strict).canonical()


def in_parts(
    pair: Pair[Image],
    normalize: Callable[[Image, str], Image],
    contrasts: Sequence[Contrast],
    labels: tuple[Image, Image] | None,
    *,
    weight: float,
    alone: bool,
) -> tuple[Image, Image]:
    """The fixed and the moving image to compare, on the grids of ``pair``.

    Args:
        normalize: normalizes intensities, given an image and its name.
        contrasts: further images of the subjects.
        labels: the label maps that guide; None: none do.
        weight: that of the labels.
        alone: whether the labels stand for FIXED and MOVING themselves, which are left out.

    Raises:
        InputError: an image without contrast, or label maps without a common label.
        ResourceError: there is not enough memory for the channels.
    """
    parts = [] if alone else [Part(pair.fixed.data.shape[1])]
    sides: list[list[Image]] = [[], []]
    for side, (role, first) in zip(sides, (("fixed", pair.fixed), ("moving", pair.moving)), strict=True):
        side += [] if alone else [normalize(first, role)]
        for k, contrast in enumerate(contrasts, 2):
            side.append(normalize(_masked(_onto(getattr(contrast, role), first.grid), first), f"{role}_{k}"))
    parts += [Part(c.fixed.data.shape[1], c.weight) for c in contrasts]
    if labels is not None:
        at = 0 if alone else len(parts)  # the first part is what centers of mass are taken of
        codes = _codes(labels, pair)
        parts.insert(at, Part(codes[0].data.shape[1], weight, is_labels=True))
        for side, code in zip(sides, codes, strict=True):
            side.insert(at, code)
    if len(parts) == 1 and not parts[0].is_labels:
        return sides[0][0], sides[1][0]
    channels = sum(p.channels for p in parts) - 1
    require_memory(BYTES_PER_CHANNEL * channels * pair.fixed.data.numel(), f"{channels + 1} channels", "give fewer images, or smaller ones")
    fixed, moving = (joined(side, parts) for side in sides)
    return fixed, moving


def _codes(labels: tuple[Image, Image], pair: Pair[Image]) -> list[Image]:
    """The codes of the labels that both label maps have, on the grids of the pair."""
    names, others = shared_labels(*labels)
    if not names:
        raise InputError(
            f"the fixed and the moving label map have no label in common, so labels cannot guide; leave out {option('guide_labels', '')}"
        )
    if others:
        shown = ", ".join(map(str, others[:8])) + (", ..." if len(others) > 8 else "")
        log.warning("%d labels guide; only one of the two label maps has %s: left out", len(names), shown)
    codes = []
    for image, first in zip(labels, (pair.fixed, pair.moving), strict=True):
        same = _is_same_grid(image.grid, first.grid)
        placed = replace(image, grid=first.grid) if same else image.moved_by(Identity(), first.grid, mode="nearest")
        codes.append(_masked(encoded(placed, names), first))
    return codes
