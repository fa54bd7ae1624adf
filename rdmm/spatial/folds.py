"""Folds of a map between voxels, model (47)."""

from __future__ import annotations

import math

from rdmm.spatial.grid import Grid
from rdmm.spatial.ops import corner_determinants
from rdmm.types import Tensor

LAYERS_AT_ONCE = 16
"""Layers of cells whose determinants are in memory at once: of all layers, they would exceed the registration's peak. Not measured."""


def non_diffeomorphic_volume(u: Tensor, grid: Grid) -> dict[str, float]:
    """Folds by the determinants of each cell's simplices (10 in 3D, 4 in 2D), which see folds between voxels too.

    Returns:
        ``folded_cells_percent``, the percentage of cells with a determinant <= 0; and ``ndv_percent``, the negative volume divided by the
        volume of the domain, model (47).
    """
    folded, volume, cells = 0, 0.0, math.prod(n - 1 for n in grid.shape)
    for first in range(0, grid.shape[0] - 1, LAYERS_AT_ONCE):  # see LAYERS_AT_ONCE
        layers = u[:, :, first : first + LAYERS_AT_ONCE + 1].double()
        det = corner_determinants(layers, Grid((layers.shape[2], *grid.shape[1:]), grid.affine), grid.spacing)
        folded += int((det <= 0).any(0).sum())
        negative = -det.clamp_max(0).flatten(1).sum(1)
        # 2D: each square splits in two ways into two triangles of 1/2; 3D: each cube in two ways into 4 x 1/6 + 1/3
        volume += float(negative.sum() / 4 if grid.ndim == 2 else (negative[:8].sum() / 6 + negative[8:].sum() / 3) / 2)
    return {"folded_cells_percent": 100 * folded / cells, "ndv_percent": 100 * volume / cells}
