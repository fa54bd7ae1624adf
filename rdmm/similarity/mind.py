"""Self-similarity context, MIND-SSC (Heinrich, Jenkinson, Papież, Brady, Schnabel, MICCAI 2013); model (51).

The descriptor of a voxel tells which of the patches around it look alike. It has one channel for each pair of face neighbors s, t that
lie at a right angle, seen from the voxel (4 channels in slices, 12 in volumes):

    d(x) = mean over the patch of (I(x + s) - I(x + t))^2,    m(x) = exp(-(d(x) - min d) / (mean d - min d + e)),    e = kappa VAR(I)

where min and mean are over the channels, and VAR is the variance over the whole image. Intensities of the two images are never compared:
the descriptor does not change with the scale, sign and offset of the intensities, and little under other changes of contrast.

On CPU, in float32, one fused pass (rdmm/kernels/mind.py, numba) computes the value and the analytic gradient; elsewhere the same formula
runs in torch, which also tests the kernel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from rdmm.kernels.available import has_kernels
from rdmm.similarity.statistics import VARIANCE_FLOOR, mean, overlap
from rdmm.spatial.image import Image
from rdmm.types import Tensor, require_whole

KAPPA = 1e-3
"""Part of an image's variance that is added to the mean distance, so that flat regions have a finite gradient."""

SCALE = 3.0
"""Factor of the mean squared difference of the descriptors."""

Offset = tuple[int, ...]


def neighbor_pairs(ndim: int, dilation: int) -> list[tuple[Offset, Offset]]:
    """The pairs of face neighbors at a right angle, in voxels: one for each channel."""
    steps = [tuple(sign * dilation * (i == axis) for i in range(ndim)) for axis in range(ndim) for sign in (1, -1)]
    return [(s, t) for s, t in itertools.combinations(steps, 2) if sum(a * b for a, b in zip(s, t, strict=True)) == 0]


def descriptor(x: Tensor, floor: Tensor, radius: int, dilation: int) -> Tensor:
    """m in plain torch, (b, c, channels, *s): x (b, c, *s) with a margin of ``radius`` + ``dilation`` voxels, ``floor`` (b, c) is e."""
    size, ndim = 2 * radius + 1, x.ndim - 2
    pool = F.avg_pool3d if ndim == 3 else F.avg_pool2d

    def shifted(offset: Offset) -> Tensor:
        inside = [slice(dilation + o, n - dilation + o) for o, n in zip(offset, x.shape[2:], strict=True)]
        return x[(slice(None), slice(None), *inside)]

    d = torch.stack([pool((shifted(s) - shifted(t)) ** 2, size, stride=1) for s, t in neighbor_pairs(ndim, dilation)], 2)
    d = d - d.amin(2, keepdim=True)
    return torch.exp(-d / (d.mean(2, keepdim=True) + floor.view(*floor.shape, *(1,) * (ndim + 1))))


@dataclass(frozen=True)
class MIND:
    """SCALE times the mean squared difference of the descriptors, mean over channels; (b,).

    Images may have any contrast, e.g. T1 and T2. At the edges of the grid the last voxels are repeated, and values outside the masks are
    replaced by a continuation of those inside. With the factor, one ``similarity_weight`` gives maps about as smooth as LNCC's.

    Args:
        radius: voxels on each side of a patch's center.
        dilation: distance of the neighbors from the voxel, in voxels.
        fused: whether the compiled kernel (CPU, float32) is used; None: where it can be.
    """

    radius: int = 1
    dilation: int = 2
    fused: bool | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("radius", "dilation"):
            require_whole(f"similarity.{name}", getattr(self, name), 1, 16)

    def __call__(self, moved: Image, target: Image) -> Tensor:
        weight = overlap(moved, target)
        with torch.autocast(moved.data.device.type, enabled=False):
            a, b = (x.data if weight is None else Image(x.data, x.grid, weight).inpainted().data for x in (moved, target))
            ea, eb = (KAPPA * (mean((x - mean(x, weight).detach()) ** 2, weight).flatten(1) + VARIANCE_FLOOR) for x in (a, b))
            margin = (self.radius + self.dilation,) * 2 * moved.grid.ndim
            a, b = (F.pad(x, margin, mode="replicate") for x in (a, b))
            return SCALE * self._difference(a, b, ea, eb, weight).mean(1)

    def _difference(self, a: Tensor, b: Tensor, ea: Tensor, eb: Tensor, weight: Tensor | None) -> Tensor:
        """(b, c) mean squared difference of the descriptors of two images with a margin."""
        if has_kernels(a) and a.dtype == torch.float32 if self.fused is None else self.fused:
            from rdmm.kernels.mind import fused_difference

            return fused_difference(a, b, ea, eb, weight, self.radius, neighbor_pairs(a.ndim - 2, self.dilation))
        ma, mb = (descriptor(x, floor, self.radius, self.dilation) for x, floor in ((a, ea), (b, eb)))
        return mean(((ma - mb) ** 2).mean(2), weight).flatten(1)
