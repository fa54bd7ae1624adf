"""Affine maps: from keypoints (KeyMorph: Yu, Wang, Dalca, Sabuncu, MIDL 2022; Wang et al., MedIA 2023), or by regression in steps."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from networks.inputs import at_training_resolution, require_trained_kind
from networks.unet import Backbone, CoarseUNet, Encoder, to_float32
from rdmm.similarity import NCC
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.ops import resize
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Affine, Identity
from rdmm.stages.affine_search import affine_result
from rdmm.stages.base import Result
from rdmm.types import ConfigError, Tensor

KEYPOINT_SHARPNESS = 3.0
"""Inverse temperature of the soft-argmax over standardized heat maps; too low, and all keypoints move to the center."""


def fit_affine(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """(b, d+1, d+1): the affine map with A x_i = y_i by least squares; ``ridge`` pulls its linear part to the identity.

    Args:
        x, y: points (b, d, n).
        ridge: weight of the pull to the identity, in squared units of the points.
    """
    b, d, n = x.shape
    cx, cy = x.mean(2, keepdim=True), y.mean(2, keepdim=True)
    x0, y0 = x - cx, y - cy
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    gram = x0 @ x0.transpose(1, 2) / n + ridge * eye
    cross = y0 @ x0.transpose(1, 2) / n + ridge * eye
    linear = torch.linalg.solve(gram, cross.transpose(1, 2)).transpose(1, 2)  # gram is symmetric
    last = torch.zeros(b, 1, d + 1, dtype=x.dtype, device=x.device)
    last[..., -1] = 1
    return torch.cat([torch.cat([linear, cy - linear @ cx], 2), last], 1)


class AffineNetwork(nn.Module, ABC):
    """A Stage: an affine map.

    Args:
        shape: of the training images, in voxels. Images are resampled so that their longest edge is not longer than its longest edge.
        channels: channels of an image.
    """

    def __init__(self, shape: Sequence[int], channels: int) -> None:
        super().__init__()
        if len(shape) not in (2, 3) or min(shape) < 8:
            raise ConfigError(f"shape must be 2 or 3 sizes of 8 voxels and more, not {list(shape)}")
        self.ndim, self.channels, self.resolution = len(shape), channels, max(shape)

    @abstractmethod
    def matrices(self, pair: Pair[Image]) -> list[Tensor]:
        """The map after each step, (b, d+1, d+1) in domain units of the fixed frame, without the pair's initial map."""

    def check(self, pair: Pair) -> None:
        """Raise InputError if the network was trained for another number of dimensions or channels."""
        require_trained_kind(pair, self.ndim, self.channels)

    def forward(self, pair: Pair[Image]) -> Result:
        begin = time.perf_counter()
        with torch.no_grad():
            matrix = self.matrices(pair)[-1].double()
            transform = Affine(matrix[0] if len(matrix) == 1 else matrix)
            f = float(NCC()(pair.moved_by(transform), pair.fixed).mean())
        return affine_result(transform, f, [], begin)

    def _level(self, pair: Pair[Image]) -> Pair[Image]:
        """The pair at the resolution of the training; the network moves to its device."""
        if next(self.parameters()).device != pair.fixed.data.device:
            self.to(pair.fixed.data.device)
        return at_training_resolution(pair, self.ndim, self.channels, self.resolution)


class AffineNet(AffineNetwork):
    """An affine map from keypoints, in ``steps`` steps.

    A network finds keypoints in each image alone: the centers of mass of its heat maps. The affine map is the least-squares fit from the
    keypoints of the fixed image to those of the moving image. The images need not overlap. Swapping them inverts the map, up to the ridge.

    Args:
        backbone: makes the network.
        shape: of the training images, in voxels. Images are resampled so that their longest edge is not longer than its longest edge.
        keypoints: number of keypoints.
        steps: refinement steps. From the second one on, the network sees the moving image warped by the map so far.
        channels: channels of an image.
        reduction: image voxels along the edge of one heat-map voxel.
        ridge: of the fit (fit_affine), in squared domain units.
    """

    def __init__(
        self,
        backbone: Backbone,
        shape: Sequence[int],
        keypoints: int = 32,
        steps: int = 2,
        channels: int = 1,
        reduction: int = 4,
        ridge: float = 1e-3,
    ) -> None:
        super().__init__(shape, channels)
        d = self.ndim
        if keypoints <= d or steps < 1 or not ridge > 0:
            raise ConfigError(f"affine: more than {d} keypoints, steps >= 1 and ridge > 0 are wanted, not {keypoints}, {steps}, {ridge}")
        self.steps, self.ridge = steps, ridge
        self.maps = CoarseUNet(backbone, d, channels, keypoints, reduction, zero_init=False)

    def points(self, image: Image) -> Tensor:
        """Keypoints (b, d, k) in domain units of the image's grid."""
        return self._keypoint_positions(self.maps(image.data), image.grid)

    @staticmethod
    def _keypoint_positions(maps: Tensor, grid: Grid) -> Tensor:
        """Soft-argmax of each heat map, (b, d, k) in domain units of ``grid``."""
        with torch.autocast(maps.device.type, enabled=False):
            flat = to_float32(maps).flatten(2)
            spread = flat.std(2, keepdim=True).clamp_min(1e-6)
            mass = torch.softmax(KEYPOINT_SHARPNESS * (flat - flat.mean(2, keepdim=True)) / spread, 2)
            x = grid.resized(maps.shape[2:]).identity(mass).flatten(2)
            return (mass @ x[0].T).transpose(1, 2)

    def matrices(self, pair: Pair[Image]) -> list[Tensor]:
        level = self._level(pair)
        x, y = self._both(level)
        with torch.autocast(x.device.type, enabled=False):
            out = [fit_affine(x, y, self.ridge)]
        for _ in range(self.steps - 1):
            y = self.points(level.moved_by(Affine(out[-1])))
            with torch.autocast(x.device.type, enabled=False):
                out.append(out[-1] @ fit_affine(x, y, self.ridge))
        return out

    def _both(self, level: Pair[Image]) -> tuple[Tensor, Tensor]:
        """Keypoints of the fixed and the moving image, in the fixed frame.

        Without an initial map, the network sees each image on its own grid.
        """
        fixed, moving = level.fixed, level.moving
        if not isinstance(level.initial, Identity):
            moving = level.moved_by(Identity())
        if moving.grid.shape == fixed.grid.shape:
            maps = self.maps(torch.cat([fixed.data, moving.data])).chunk(2)  # one call for both images is faster
            x, y = (self._keypoint_positions(m, i.grid) for m, i in zip(maps, (fixed, moving), strict=True))
        else:
            x, y = self.points(fixed), self.points(moving)
        return x, self._in_frame(y, moving.grid, fixed.grid)

    @staticmethod
    def _in_frame(points: Tensor, own: Grid, frame: Grid) -> Tensor:
        return points if own.same_frame(frame) else frame.from_world(own.to_world(points))


class AffineRegression(AffineNetwork):
    """An affine map by regression in ``steps`` steps (RDMM paper; Shen, Han, Xu, Niethammer, CVPR 2019).

    One network sees the fixed image and the moving image warped by the map so far, and gives the next matrix, about the center of the fixed
    grid. The steps are composed. The images must overlap.

    Args:
        shape, channels: see AffineNetwork.
        features: channels of the encoder's levels, from 1/2 of the resolution to coarser ones.
        steps: number of steps.
    """

    def __init__(self, shape: Sequence[int], features: Sequence[int] = (16, 32, 64, 64), steps: int = 5, channels: int = 1) -> None:
        super().__init__(shape, channels)
        if steps < 1 or not features or min(features) < 1:
            raise ConfigError(f"affine: steps >= 1 and one or more features >= 1 are wanted, not {steps}, {list(features)}")
        d = self.ndim
        self.steps, self.factor = steps, 2 ** len(features)
        self.encoder = Encoder(d, 2 * channels, features)
        self.entries = nn.Linear(features[-1] * 2**d, d * (d + 1))
        nn.init.normal_(self.entries.weight, std=1e-3)  # an untrained network predicts next to nothing
        nn.init.zeros_(self.entries.bias)

    def matrices(self, pair: Pair[Image]) -> list[Tensor]:
        level = self._level(pair)
        out: list[Tensor] = []
        for _ in range(self.steps):
            step = self._step(level.moved_by(Affine(out[-1]) if out else Identity()).data, level.fixed)
            out.append(out[-1] @ step if out else step)
        return out

    def _step(self, moved: Tensor, fixed: Image) -> Tensor:
        """(b, d+1, d+1): the map from the fixed image to the moving one that was moved already."""
        d, grid = self.ndim, fixed.grid
        x = torch.cat([moved, fixed.data], 1).to(self.entries.weight.dtype)
        x = resize(x, tuple(self.factor * max(2, -(-n // self.factor)) for n in grid.shape))
        features = self._halves(self.encoder(x)[-1])
        with torch.autocast(x.device.type, enabled=False):
            entries = self.entries(to_float32(features)).view(-1, d, d + 1)
            center = torch.tensor(grid.extent).to(entries).view(1, d, 1) / 2
            linear = torch.eye(d).to(entries) + entries[..., :d]
            last = torch.zeros(len(entries), 1, d + 1).to(entries)
            last[..., -1] = 1
            return torch.cat([torch.cat([linear, center - linear @ center + entries[..., d:]], 2), last], 1)

    def _halves(self, x: Tensor) -> Tensor:
        """(b, c 2^d): the means of features (b, c, *s) in the two halves of each axis, which tell where something is."""
        for axis in range(2, 2 + self.ndim):
            half = x.shape[axis] // 2
            ends = [x.narrow(axis, 0, half), x.narrow(axis, x.shape[axis] - half, half)]
            x = torch.cat([e.mean(axis, keepdim=True) for e in ends], axis)
        return x.flatten(1)
