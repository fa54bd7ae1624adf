"""A network that predicts a map from coarse to fine, in the space half-way between the images (rdmm.stages.halfway).

One encoder sees each image alone. At each level, the features of both are warped by the map so far; a local correlation of them tells where
they still differ, and a small network makes a momentum of it. The momentum is that of the pair minus that of the swapped pair, so it
changes its sign when the images are swapped, whatever the weights are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from networks.inputs import at_training_resolution, preweights, require_trained_kind
from networks.unet import Encoder, convolutions, run_checkpointed, to_float32
from rdmm.dynamics.base import InitialConditions
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Identity
from rdmm.stages.halfway import Halves, LevelPredictor
from rdmm.types import ConfigError, Tensor


def correlation(x: Tensor, y: Tensor, radius: int) -> Tensor:
    """Local cost volume of features x, y (b, c, *s): (b, (2 radius + 1)^d, *s).

    Channel k is the cosine of the angle between x at a voxel and y at that voxel plus the k-th offset, (-radius, ...) to (radius, ...).
    """
    x, y = (z * (z.square().sum(1, keepdim=True) + 1e-6).rsqrt() for z in (x, y))
    s = x.shape[2:]
    around = F.pad(y, [radius] * 2 * len(s), mode="replicate")
    costs = []
    for offset in itertools.product(range(2 * radius + 1), repeat=len(s)):
        window = [slice(None), slice(None), *(slice(o, o + n) for o, n in zip(offset, s, strict=True))]
        costs.append((x * around[tuple(window)]).sum(1))
    return torch.stack(costs, 1)


class Pyramid(nn.Module):
    """A HalfwayPredictor: SVF steps from coarse to fine, the last one an initial momentum of any dynamics, with pre-weights for RDMM.

    z of a level is smoothed by a Gaussian, and the momentum is m0 = K^{1/2} (K + delta)^{-1} z, model (27), as in Predictor.

    Args:
        smoother: the smoother of the dynamics.
        shape: of the training images, in voxels. Pairs are resampled so that their longest edge is not longer than its longest edge.
        features: channels of the encoder's levels, from 1/2 of the resolution to coarser ones, each half of the one before.
        radii: of the correlation, in voxels of each level.
        hidden: channels of the small network of each level.
        weights: whether the last step has pre-weights.
        channels: channels of an image.
        scale: factor from the network's output to z, in domain units.
        smoothing: sigma of the Gaussian of z, in voxels of its level.
        recompute: checkpoint the networks in training: less memory, more time.
    """

    def __init__(
        self,
        smoother: MultiGaussian,
        shape: Sequence[int],
        features: Sequence[int] = (16, 32, 32, 32),
        radii: Sequence[int] = (1, 1, 1, 2),
        hidden: int = 32,
        weights: bool = False,
        channels: int = 1,
        scale: float = 0.1,
        smoothing: float = 2.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        d, n = len(shape), len(features)
        if d not in (2, 3) or min(shape) < 8:
            raise ConfigError(f"shape must be 2 or 3 sizes of 8 voxels and more, not {list(shape)}")
        if n < 2 or min(features) < 1 or min(hidden, channels) < 1:
            raise ConfigError(
                f"predictor: features are 2 or more numbers >= 1, hidden and channels >= 1, not {list(features)}, {hidden}, {channels}"
            )
        if len(radii) != n or min(radii) < 1:
            raise ConfigError(f"predictor.radii are numbers >= 1, one per level of features, not {list(radii)} for {n} levels")
        if not (scale > 0 and smoothing >= 0):
            raise ConfigError(f"predictor: scale must be > 0 and smoothing >= 0, not {scale}, {smoothing}")
        self.smoother, self.ndim, self.channels, self.resolution = smoother, d, channels, max(shape)
        self.radii, self.scale, self.smoothing, self.recompute = tuple(radii), scale, smoothing, recompute
        self.encoder = Encoder(d, channels, features)
        self.heads = nn.ModuleList()
        for k, (f, r) in enumerate(zip(features, radii, strict=True)):
            head = convolutions(d, [2 * f + (2 * r + 1) ** d, hidden, hidden])
            last = (nn.Conv2d if d == 2 else nn.Conv3d)(hidden, d + (len(smoother.sigmas) if weights and k == 0 else 0), 3, padding=1)
            nn.init.normal_(last.weight, std=1e-3)  # an untrained network predicts next to nothing
            self.heads.append(head.append(last))

    def check(self, pair: Pair) -> None:
        """Raise InputError if the network was trained for another number of dimensions or channels."""
        require_trained_kind(pair, self.ndim, self.channels)

    def forward(self, pair: Pair[Image]) -> InitialConditions:
        """Raises ConfigError: one geodesic cannot hold the steps of all levels."""
        raise ConfigError("this model predicts several steps half-way between the images, not the start of one search: use stages=learned")

    def halfway(self, pair: Pair[Image]) -> list[LevelPredictor]:
        """One function per level, from coarse to fine (HalfwayPredictor)."""
        level = at_training_resolution(pair, self.ndim, self.channels, self.resolution)
        grid = level.fixed.grid
        if next(self.parameters()).device != level.fixed.data.device:
            self.to(level.fixed.data.device)
        fixed, moving = (self._features(image, grid) for image in (level.fixed.data, level.moved_by(Identity()).data))
        return [partial(self._predict, k, grid, fixed[k], moving[k]) for k in reversed(range(len(self.heads)))]

    def _features(self, data: Tensor, grid: Grid) -> list[Image]:
        """Features (b, f, *s) of each level, on the grids of the centers of their blocks of voxels. Edges are repeated to whole blocks."""
        factor = 2 ** len(self.heads)
        missing = [-n % factor for n in grid.shape]
        x = F.pad(data.to(next(self.parameters()).dtype), [k for n in reversed(missing) for k in (0, n)], mode="replicate")
        whole = Grid(x.shape[2:], grid.affine)
        maps = run_checkpointed(self.encoder, x) if self.recompute else self.encoder(x)
        return [Image(to_float32(y), whole.pooled([2**k] * self.ndim)) for k, y in enumerate(maps, 1)]

    def _predict(self, k: int, grid: Grid, fixed: Image, moving: Image, halves: Halves) -> InitialConditions:
        """The step of a level, on the grid of about its voxels."""
        onto = grid.scaled(0.5 ** (k + 1))
        x, y = moving.moved_by(halves.to_moving, onto).data, fixed.moved_by(halves.to_fixed, onto).data
        x, y = torch.cat([x, y]), torch.cat([y, x])  # the pair, and the swapped pair
        seen = torch.cat([correlation(x, y, self.radii[k]), x, y], 1)
        out = to_float32(run_checkpointed(self.heads[k], seen) if self.recompute else self.heads[k](seen))
        there, back = out.to(halves.to_moving.displacement.dtype).chunk(2)
        d = self.ndim
        with torch.autocast(there.device.type, enabled=False):  # only the networks may be in half precision
            z = gaussian(self.scale / 2 * (there[:, :d] - back[:, :d]), self.smoothing * max(onto.spacing), onto)
            logits = (there[:, d:] + back[:, d:]) / 2
            m = self.smoother.precondition(z, onto)
            return InitialConditions(m, preweights(logits, self.smoother) if logits.shape[1] else None)
