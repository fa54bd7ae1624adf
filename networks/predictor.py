"""A network that predicts initial conditions from a pair of images: the learned mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from networks.inputs import at_training_resolution, preweights, require_trained_kind
from networks.unet import Backbone, CoarseUNet, run_checkpointed, to_float32
from rdmm.dynamics.base import InitialConditions
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Identity
from rdmm.types import ConfigError, Tensor


class Predictor(nn.Module):
    """An Initializer: predicts m0, and h(0) for RDMM, from the fixed image and the pre-aligned moving image.

    One network predicts z. The momentum is m0 = K^{1/2} (K + delta)^{-1} z, and 1/2 |z|^2 is the energy of the velocity. As in LBFGS,
    this leaves out momenta that K would remove. A second network predicts the logits of the squared pre-weights, relative to those of
    the smoother (RDMM paper, section 3.2). Both networks see the pair at the resolution of their training.

    Args:
        smoother: the smoother of the dynamics.
        backbone: makes both networks.
        shape: of the training images, in voxels. Pairs are resampled so that their longest edge is not longer than its longest edge.
        weights: whether pre-weights are predicted.
        channels: channels of an image.
        reduction: image voxels (resampled) along the edge of one voxel of the shooting grid.
        scale: factor from the network's output to z, in domain units.
        recompute: checkpoint the networks in training: less memory, more time.
    """

    def __init__(
        self,
        smoother: MultiGaussian,
        backbone: Backbone,
        shape: Sequence[int],
        weights: bool = False,
        channels: int = 1,
        reduction: int = 2,
        scale: float = 0.1,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3) or min(shape) < 8:
            raise ConfigError(f"shape must be 2 or 3 sizes of 8 voxels and more, not {list(shape)}")
        if not scale > 0 or channels < 1:
            raise ConfigError(f"network: scale must be > 0 and channels >= 1, not {scale}, {channels}")
        d = len(shape)
        self.ndim, self.channels, self.resolution, self.scale, self.recompute = d, channels, max(shape), scale, recompute
        self.smoother = smoother
        self.momentum = CoarseUNet(backbone, d, 2 * channels, d, reduction)
        self.weights = CoarseUNet(backbone, d, 2 * channels, len(smoother.sigmas), reduction) if weights else None

    def check(self, pair: Pair) -> None:
        """Raise InputError if the network was trained for another number of dimensions or channels."""
        require_trained_kind(pair, self.ndim, self.channels)

    def forward(self, pair: Pair[Image]) -> InitialConditions:
        """Momentum (b, d, *s) and pre-weights (b, n, *s) on the shooting grid."""
        x, level = self.network_input(pair)
        z = self.scale * self._run(self.momentum, x)
        logits = None if self.weights is None else self._run(self.weights, x)
        with torch.autocast(x.device.type, enabled=False):  # only the networks may be in half precision
            m = self.smoother.precondition(to_float32(z), level.fixed.grid.resized(z.shape[2:]))
            return InitialConditions(m, None if logits is None else preweights(to_float32(logits), self.smoother))

    def network_input(self, pair: Pair[Image]) -> tuple[Tensor, Pair[Image]]:
        """(b, 2c, *s): the pre-aligned moving image and the fixed one; and the resampled pair."""
        level = at_training_resolution(pair, self.ndim, self.channels, self.resolution)
        x = torch.cat([level.moved_by(Identity()).data, level.fixed.data], 1)
        if next(self.parameters()).device != x.device:
            self.to(x.device)
        return x, level

    def _run(self, net: CoarseUNet, x: Tensor) -> Tensor:
        x = x.to(next(net.parameters()).dtype)
        return run_checkpointed(net, x) if self.recompute else net(x)
