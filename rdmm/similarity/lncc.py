"""Local normalized cross-correlation over box windows, one or several (mk-LNCC; Shen et al., CVPR 2019); model (32).

At each voxel, with means, variances and covariance over the window (weighted by the mask),

    cc^2 = (|cov| + e)^2 / ((var_a + e_a) (var_b + e_b)),    e_x = kappa VAR(x),  e = sqrt(e_a e_b),

where VAR is the variance over the whole image. So cc^2 does not change with the scale and offset of either intensity, is 1 where
both images are flat and about 0 where only one is, and has a finite gradient. The similarity is 1 - mean cc^2.

Box sums are running sums, so a window of any size costs the same. On CPU one fused pass (rdmm/kernels/lncc.py, numba) computes the
value and the analytic gradient; elsewhere the same formula runs in torch, which also tests the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F

from rdmm.kernels.available import has_kernels
from rdmm.similarity.statistics import VARIANCE_FLOOR, mean, overlap, variances_and_covariance
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import ConfigError, Tensor, require_finite_fields

KAPPA = 1e-4
"""Part of an image's variance that is added to those of its windows, so that flat windows have a finite gradient. Not measured."""

SMALL_RADIUS = 4
"""Up to this radius, adding the voxels of a window reads less memory than running sums do. Not measured."""

Unit = Literal["voxel", "domain"]
Radius = tuple[int, ...]
"""Voxels on each side of a window's center, along each axis."""


def box_sum(x: Tensor, radius: Radius) -> Tensor:
    """Sums of x (b, c, *s) over windows of 2 r_i + 1 voxels, cut at the edges of the grid; linear time for any r.

    Small windows are added voxel by voxel. Running sums of large ones are float64, as in the kernel: their differences lose digits.
    """
    for axis, r in zip(range(x.ndim - len(radius), x.ndim), radius, strict=True):
        n = x.shape[axis]
        r = min(r, n - 1)
        if r <= SMALL_RADIUS:
            padded = F.pad(x, (*(0, 0) * (x.ndim - 1 - axis), r, r))
            x = sum((padded.narrow(axis, k, n) for k in range(1, 2 * r + 1)), padded.narrow(axis, 0, n))
            continue
        total = F.pad(x.cumsum(axis, dtype=torch.float64).movedim(axis, -1), (r + 1, 0))
        total = torch.cat([total, total[..., -1:].expand(*total.shape[:-1], r)], -1)
        x = (total[..., 2 * r + 1 :] - total[..., : -2 * r - 1]).to(x.dtype).movedim(-1, axis)
    return x


def local_correlation(a: Tensor, b: Tensor, weight: Tensor | None, radius: Radius) -> Tensor:
    """(b,) mean of cc^2 over space and channels, in plain torch: a, b (b, c, *s), weight (b, 1, *s) or None."""
    w = torch.ones_like(a[:, :1]) if weight is None else weight
    shape = (*a.shape[:2], *(1,) * len(radius))
    a, b = (x - mean(x, w).detach() for x in (a, b))
    va, vb, _ = (x.view(shape) + VARIANCE_FLOOR for x in variances_and_covariance(a, b, w))
    count = box_sum(w, radius).clamp_min(1e-6)
    ma, mb = box_sum(w * a, radius) / count, box_sum(w * b, radius) / count
    var_a = (box_sum(w * a * a, radius) / count - ma**2).clamp_min(0)
    var_b = (box_sum(w * b * b, radius) / count - mb**2).clamp_min(0)
    cov = box_sum(w * a * b, radius) / count - ma * mb
    cc = (cov.abs() + KAPPA * (va * vb).sqrt()) ** 2 / ((var_a + KAPPA * va) * (var_b + KAPPA * vb))
    return mean(cc, w).flatten(1).mean(1)


@dataclass(frozen=True)
class MultiKernelLNCC:
    """1 - sum_k weight_k mean cc_k^2 over windows of several sizes; (b,), mean over channels.

    Args:
        windows: side lengths: odd numbers of voxels, or fractions of the longest edge (``unit="domain"``), which are rounded
            to an odd number of voxels on each axis.
        weights: weight of each window, positive; normalized to sum 1.
        unit: unit of the windows: ``voxel`` or ``domain``.
        fused: whether the compiled kernel is used; None: where it can be.
    """

    windows: Sequence[float] = (1 / 16, 1 / 8, 1 / 4)
    weights: Sequence[float] = (0.1, 0.3, 0.6)
    unit: Unit = "domain"
    fused: bool | None = field(default=None, compare=False)
    supposes_one_contrast: ClassVar[bool] = True  # up to linear changes of intensity

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if not self.windows or len(self.windows) != len(self.weights):
            raise ConfigError(f"similarity: {len(self.windows)} windows but {len(self.weights)} weights; give one weight per window")
        if self.unit not in get_args(Unit):
            raise ConfigError(f"similarity.unit must be voxel or domain, not {self.unit!r}")
        if self.unit == "voxel" and any(w < 3 or w % 2 != 1 for w in self.windows):
            raise ConfigError(f"similarity windows in voxels must be odd and at least 3, not {list(self.windows)}")
        if self.unit == "domain" and any(not 0 < w <= 1 for w in self.windows):
            raise ConfigError(f"similarity windows in domain units must be in (0, 1], not {list(self.windows)}")
        if any(w <= 0 for w in self.weights):
            raise ConfigError(f"similarity weights must be positive, not {list(self.weights)}")

    def radii(self, grid: Grid) -> list[Radius]:
        """The radius of each window."""
        if self.unit == "voxel":
            radii = [(int(w) // 2,) * grid.ndim for w in self.windows]
        else:
            radii = [tuple(max(1, round((w / h - 1) / 2)) for h in grid.spacing) for w in self.windows]
        for w, r in zip(self.windows, radii, strict=True):
            if all(2 * ri + 1 > 2 * n for ri, n in zip(r, grid.shape, strict=True)):
                raise ConfigError(f"a window of {w} {self.unit}s is larger than the image of {grid.shape} voxels; make it smaller")
        return radii

    def __call__(self, moved: Image, target: Image) -> Tensor:
        weight = overlap(moved, target)
        radii, total = self.radii(target.grid), sum(self.weights)
        weights = [w / total for w in self.weights]
        if has_kernels(moved.data) if self.fused is None else self.fused:
            from rdmm.kernels.lncc import fused_correlation

            return 1 - fused_correlation(moved.data, target.data, weight, radii, weights, KAPPA)
        with torch.autocast(moved.data.device.type, enabled=False):
            a, b = moved.data, target.data
            windows = [w * local_correlation(a, b, weight, r) for w, r in zip(weights, radii, strict=True)]
            return 1 - torch.stack(windows).sum(0)


SLICE_WINDOW, VOLUME_WINDOW = 7, 3
"""Sides of the windows of LNCC() in voxels. A window of few voxels correlates by chance: a side of three is enough in volumes (27 voxels)
but not in slices (9), where seven gave the best overlap of labels (benchmarks/README.md)."""


@dataclass(frozen=True)
class LNCC:
    """1 - mean cc^2 over one box window of ``window`` voxels (odd); (b,). See MultiKernelLNCC.

    Args:
        window: side of the window; None: 3 voxels in volumes, 7 in slices (fewer in very small slices).
        fused: as in MultiKernelLNCC.
    """

    window: int | None = None
    fused: bool | None = field(default=None, compare=False)
    supposes_one_contrast: ClassVar[bool] = True  # up to linear changes of intensity

    def __post_init__(self) -> None:
        if self.window is not None:
            self._kernel(self.window)

    def _kernel(self, window: int) -> MultiKernelLNCC:
        return MultiKernelLNCC((window,), (1.0,), "voxel", self.fused)

    def __call__(self, moved: Image, target: Image) -> Tensor:
        window = self.window
        if window is None:
            grid = target.grid
            window = VOLUME_WINDOW if grid.ndim == 3 else max(VOLUME_WINDOW, min(SLICE_WINDOW, 2 * max(grid.shape) - 1))
        return self._kernel(window)(moved, target)
