"""The true map of a synthetic pair, by which a map is measured at every voxel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rdmm.types import Tensor, repr_with_shapes


@dataclass(frozen=True, eq=False)
class Truth:
    """The true map, fixed -> moving, and where it is measured.

    Args:
        displacement: (1, d, *s) on the fixed grid, in domain units.
        regions: by name, 1 inside and 0 outside, (1, 1, *s) on the fixed grid.
    """

    displacement: Tensor
    regions: Mapping[str, Tensor]

    __repr__ = repr_with_shapes
