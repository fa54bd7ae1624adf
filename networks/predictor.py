"""Initial conditions from images: the learned mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from networks.inputs import at_training_resolution
from networks.unet import Backbone, CoarseUNet, run_checkpointed, to_float32
from rdmm.dynamics.base import InitialConditions
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Identity
from rdmm.types import ConfigError, Tensor


class Predictor(nn.Module):
    """An Initializer: the pre-aligned moving image and the fixed one to m0 and, of RDMM, h(0).

    One network predicts z of m0 = K^{1/2} (K + delta)^{-1} z, whose 1/2 |z|^2 is the velocity's energy (as in LBFGS: no momentum
    that K would extinguish); another the logits of the squared pre-weights, relative to the smoother's own (RDMM paper,
    section 3.2). Both see the pair at the resolution they were trained at, whatever its own.

    Args:
        smoother: that of the dynamics.
        backbone: of both networks.
        shape: of the images in training; its longest edge is the resolution at which pairs are seen.
        weights: whether pre-weights are predicted.
        channels: of an image.
        reduction: voxels of that resolution along the edge of one of the shooting grid.
        scale: z of an output of 1, in domain units.
        recompute: trade time for memory in training.
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

    def forward(self, pair: Pair[Image]) -> InitialConditions:
        """Momentum (b, d, *s) and pre-weights (b, n, *s) on the shooting grid."""
        x, level = self.seen(pair)
        z = self.scale * self._applied(self.momentum, x)
        logits = None if self.weights is None else self._applied(self.weights, x)
        with torch.autocast(x.device.type, enabled=False):  # only the networks may be in half precision
            m = self.smoother.precondition(to_float32(z), level.fixed.grid.resized(z.shape[2:]))
            return InitialConditions(m, None if logits is None else self.preweights(to_float32(logits)))

    def seen(self, pair: Pair[Image]) -> tuple[Tensor, Pair[Image]]:
        """(b, 2c, *s): the pre-aligned moving image and the fixed one, and the pair at the resolution of both."""
        level = at_training_resolution(pair, self.ndim, self.channels, self.resolution)
        x = torch.cat([level.moved_by(Identity()).data, level.fixed.data], 1)
        if next(self.parameters()).device != x.device:
            self.to(x.device)
        return x, level

    def _applied(self, net: CoarseUNet, x: Tensor) -> Tensor:
        x = x.to(next(net.parameters()).dtype)
        return run_checkpointed(net, x) if self.recompute else net(x)

    def preweights(self, logits: Tensor) -> Tensor:
        """h with h^2 = softmax(log w^2 + logits), w^2 the smoother's squared weights."""
        own = torch.tensor(self.smoother.weights, dtype=logits.dtype, device=logits.device).clamp_min(1e-4).log()
        return torch.softmax(logits + own.view(1, -1, *(1,) * self.ndim), 1).clamp_min(1e-12).sqrt()
