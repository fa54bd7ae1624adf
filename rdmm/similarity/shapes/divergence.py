"""The base class of divergences of measures.

A measure has atoms x_i of weight a_i and direction u_i (normal or tangent). Lengths are in the unit of the points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch

from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Pair
from rdmm.types import InputError, Tensor, option

MAX_POWER = 20
"""Largest power of <u, v>. With float32, larger ones keep only directions that are equal. Not measured."""


class MeasureDivergence(ABC):
    """A similarity of two measures, computed for each item of the batch."""

    @abstractmethod
    def _item(self, moved: Measure, target: Measure) -> Tensor:
        """The value, a scalar, for measures of batch 1 without cells."""

    @final
    def check(self, pair: Pair) -> None:
        """Raise InputError for images."""
        require_measure(pair.fixed)

    @final
    def __call__(self, moved: Measure, target: Measure) -> Tensor:
        """(b,) values; a measure of batch 1 is compared with every item of the other.

        Raises:
            InputError: the measures have different dimensions, or lack the directions that this similarity needs.
        """
        for x in (moved, target):
            require_measure(x)
        if moved.ndim != target.ndim:
            raise InputError(f"a similarity compares measures of one dimension, both 2D or both 3D, not {moved.ndim} and {target.ndim}")
        a, b = moved.atoms(), target.atoms()
        if a.features is not None and b.features is not None and a.features.shape[1] != b.features.shape[1]:
            raise InputError(f"the measures have {a.features.shape[1]} and {b.features.shape[1]} features at a point; give both the same")
        count = max(a.points.shape[0], b.points.shape[0])
        return torch.stack([self._item(single_item(a, i), single_item(b, i)) for i in range(count)])


def require_measure(x: Any) -> None:
    """Raise InputError if ``x`` is no shape."""
    if not isinstance(x, Measure):
        raise InputError(
            f"this similarity compares shapes (rdmm.Measure; files .vtk, .ply, ...), not {type(x).__name__}; "
            "for images: lncc, mklncc, ncc, ssd, nmi, sinkhorn"
        )


def single_item(m: Measure, i: int) -> Measure:
    """Item i of a batch, as a batch of 1; a batch of 1 has the same item for every i."""
    parts = {k: getattr(m, k) for k in ("points", "weights", "normals", "features")}
    return Measure(**{k: x[min(i, len(x) - 1)][None] for k, x in parts.items() if x is not None})


def directions_of(m: Measure) -> Tensor:
    """Unit directions (n, d) of the first item; raises InputError if there are none."""
    if m.normals is None:
        raise InputError(
            "this similarity compares directions: give the measure cells or normals, or choose a similarity of positions alone"
        )
    return m.normals[0].T


def features_of(m: Measure) -> Tensor:
    """Features (n, e) of the first item; raises InputError if there are none."""
    if m.features is None:
        raise InputError(
            f"similarity.cost=features compares point data: name those of the files by {option('features', 'NAME')}, give measures "
            "features, or choose another cost"
        )
    return m.features[0].T


def weights_of(m: Measure) -> Tensor:
    """Weights (n,) of the first item of ``Measure.atoms``."""
    assert m.weights is not None
    return m.weights[0]
