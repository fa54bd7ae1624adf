"""Label maps as images of a few channels: each label is a point of a sphere, the background its center."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rdmm.spatial.image import Image

CHANNELS = 8
"""Most channels of a code."""

CANDIDATES = 4096


def code_vectors(count: int, channels: int = CHANNELS) -> np.ndarray:
    """``count`` unit vectors (count, k), far from each other; k is ``channels``, or ``count`` if that is less.

    The first k are the axes, so few labels have one channel each. Then come their opposites, and random vectors, each the one whose
    largest cosine with those before it is smallest. They depend on ``count`` and ``channels`` alone.
    """
    k = min(count, channels)
    random = np.random.RandomState(0).standard_normal((max(CANDIDATES, 4 * count), k))
    candidates = np.concatenate([np.eye(k), -np.eye(k), random / np.linalg.norm(random, axis=1, keepdims=True)])
    chosen = list(range(k))
    nearest = (candidates @ candidates[chosen].T).max(1)
    while len(chosen) < count:
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, candidates @ candidates[chosen[-1]])
    return candidates[chosen]


def encoded(labels: Image, names: Sequence[int]) -> Image:
    """The codes (1, k, *s) of a label map (1, 1, *s), as float32. Labels other than ``names`` and 0 are outside the mask.

    Args:
        names: the labels, in increasing order and without 0.
    """
    table = torch.as_tensor(np.concatenate([np.zeros((1, min(len(names), CHANNELS))), code_vectors(len(names))]), dtype=torch.float32)
    known = torch.as_tensor([0, *names], dtype=labels.data.dtype)
    order = known.argsort()
    position = torch.searchsorted(known[order], labels.data).clamp_max(len(known) - 1)
    index = order[position]
    is_known = known[index] == labels.data
    data = torch.where(is_known, table[index[0, 0]].movedim(-1, 0)[None], 0)
    mask = None if bool(is_known.all()) else is_known.to(data)
    return Image(data.contiguous(), labels.grid, mask)


def shared_labels(fixed: Image, moving: Image) -> tuple[list[int], list[int]]:
    """The labels that both label maps have, and those that only one has; 0, the background, is in neither list."""
    a, b = (set(x.data.unique().tolist()) - {0} for x in (fixed, moving))
    return sorted(a & b), sorted(a ^ b)
