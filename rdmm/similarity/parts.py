"""Comparing images of several parts: several contrasts of a subject, and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rdmm.similarity.statistics import overlap
from rdmm.spatial.image import Image
from rdmm.spatial.ops import total
from rdmm.types import Tensor


def compare(similarity: Callable[[Any, Any], Tensor], moved: Any, target: Any) -> Tensor:
    """The similarity of two shapes, (b,); of images with parts, model (52):

    the mean over the image parts, each compared by ``similarity``, by their weights; plus weight times ``label_mismatch`` for labels.
    """
    if not isinstance(target, Image) or not target.parts:
        return similarity(moved, target)
    whole = sum(p.weight for p in target.parts if not p.is_labels)
    terms = []
    for part, a, b in zip(target.parts, moved.split(), target.split(), strict=True):
        terms.append(part.weight * label_mismatch(a, b) if part.is_labels else part.weight / whole * similarity(a, b))
    return sum(terms[1:], terms[0])


def label_mismatch(moved: Image, target: Image) -> Tensor:
    """1 - Dice of the codes of labels, (b,): |a - b|^2 / (|a|^2 + |b|^2), summed over voxels and channels. It is 0 for equal label maps
    and 1 for labels that do not meet; the size of the background has no influence."""
    weight = overlap(moved, target)

    def energy(x: Tensor) -> Tensor:
        square = x.square().sum(1, keepdim=True)
        return total(square if weight is None else square * weight)

    whole = energy(moved.data) + energy(target.data)
    return energy(moved.data - target.data) / whole.clamp_min(1e-12)
