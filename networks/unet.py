"""UNets of MONAI for images of any size, with their output on a coarser grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rdmm.types import ConfigError, Tensor

LEAKY_SLOPE = 0.1
"""Slope of LeakyReLU below zero."""


class Backbone(Protocol):
    """Makes a network (b, inputs, *s) -> (b, outputs, *s) for sizes that are multiples of ``multiple``."""

    @property
    def multiple(self) -> int: ...

    def __call__(self, ndim: int, inputs: int, outputs: int) -> nn.Module: ...


def _check(features: Sequence[int], least: int) -> None:
    if len(features) < least or any(not isinstance(f, int) or f < 1 for f in features):
        raise ConfigError(f"backbone.features must be {least} or more whole numbers >= 1, one per level, not {list(features)}")


def _monai_networks() -> Any:
    """MONAI's networks, which take seconds to import.

    Raises:
        ConfigError: MONAI is not installed.
    """
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ConfigError(f"networks need MONAI: pip install 'rdmm[networks]' (in a checkout, '.[networks]'); {error}") from error
    return nets


@dataclass(frozen=True)
class Basic:
    """MONAI's BasicUNet: two convolutions per level. No normalization: it would hide the distance between two images.

    Args:
        features: channels of the five levels, from fine to coarse.
    """

    features: Sequence[int] = (32, 32, 64, 128, 128)

    def __post_init__(self) -> None:
        _check(self.features, 5)
        if len(self.features) != 5:
            raise ConfigError(f"backbone.features of BasicUNet are 5 numbers, not {len(self.features)}; backbone=residual takes others")

    @property
    def multiple(self) -> int:
        return 2**4

    def __call__(self, ndim: int, inputs: int, outputs: int) -> nn.Module:
        act = ("leakyrelu", {"negative_slope": LEAKY_SLOPE, "inplace": True})
        features = (*self.features, self.features[0])
        return _monai_networks().BasicUNet(ndim, inputs, outputs, features=features, act=act, norm=None)


@dataclass(frozen=True)
class Residual:
    """MONAI's UNet of residual units.

    Args:
        features: channels of the levels, from fine to coarse.
        units: residual units per level.
    """

    features: Sequence[int] = (32, 64, 128, 128)
    units: int = 2

    def __post_init__(self) -> None:
        _check(self.features, 2)
        if self.units < 0:
            raise ConfigError(f"backbone.units must be >= 0, not {self.units}")

    @property
    def multiple(self) -> int:
        return 2 ** (len(self.features) - 1)

    def __call__(self, ndim: int, inputs: int, outputs: int) -> nn.Module:
        strides = [2] * (len(self.features) - 1)
        act = ("leakyrelu", {"negative_slope": LEAKY_SLOPE})
        net = _monai_networks().UNet(ndim, inputs, self.features[0], self.features, strides, num_res_units=self.units, act=act, norm=None)
        head = (nn.Conv2d if ndim == 2 else nn.Conv3d)(self.features[0], outputs, 1)
        return nn.Sequential(net, head)  # an own head, because MONAI's last unit adds its input to its output


def space_to_depth(x: Tensor, r: int) -> Tensor:
    """(b, c, *s) -> (b, c r^d, *(s / r)): each block of r^d voxels becomes channels, so no detail is lost."""
    b, c, *s = x.shape
    d = len(s)
    x = x.reshape(b, c, *(k for n in s for k in (n // r, r)))
    blocks, inside = range(2, 2 + 2 * d, 2), range(3, 3 + 2 * d, 2)
    return x.permute(0, 1, *inside, *blocks).reshape(b, c * r**d, *(n // r for n in s))


class CoarseUNet(nn.Module):
    """(b, inputs, *s) -> (b, outputs, *ceil(s / reduction)) for images of any size.

    The image is padded with its edge values and goes through space_to_depth; the output is cropped.

    Args:
        zero_init: start the last convolution near zero, so that an untrained network predicts almost nothing.
    """

    def __init__(self, backbone: Backbone, ndim: int, inputs: int, outputs: int, reduction: int = 2, zero_init: bool = True) -> None:
        super().__init__()
        if reduction not in (1, 2, 4, 8):
            raise ConfigError(f"reduction must be 1, 2, 4 or 8, not {reduction}")
        self.reduction, self.multiple = reduction, backbone.multiple * reduction
        self.format = torch.channels_last if ndim == 2 else torch.channels_last_3d  # 20 to 50 % faster than the default
        self.net = backbone(ndim, inputs * reduction**ndim, outputs).to(memory_format=self.format)  # type: ignore[call-overload]
        if zero_init:
            last = [m for m in self.net.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)][-1]
            nn.init.normal_(last.weight, std=1e-3)
            if last.bias is not None:
                nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        s = x.shape[2:]
        missing = [-n % self.multiple for n in s]
        x = F.pad(x, [k for n in reversed(missing) for k in (0, n)], mode="replicate")
        out = self.net(space_to_depth(x, self.reduction).contiguous(memory_format=self.format))
        return out[(..., *(slice(-(-n // self.reduction)) for n in s))].contiguous()


def to_float32(x: Tensor) -> Tensor:
    """Half precision to single precision; any other tensor is returned as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def run_checkpointed(net: nn.Module, x: Tensor) -> Tensor:
    """net(x); its activations are recomputed in the backward pass instead of being stored."""
    return checkpoint(net, x, use_reentrant=False) if torch.is_grad_enabled() else net(x)


def convolutions(ndim: int, channels: Sequence[int], size: int = 3) -> nn.Sequential:
    """Convolutions of ``size`` voxels, each followed by a LeakyReLU."""
    make = nn.Conv2d if ndim == 2 else nn.Conv3d
    layers = ((make(a, b, size, padding=size // 2), nn.LeakyReLU(LEAKY_SLOPE)) for a, b in itertools.pairwise(channels))
    return nn.Sequential(*itertools.chain(*layers))


class Encoder(nn.Module):
    """(b, channels, *s) -> features at 1/2, 1/4, ... of the resolution, for sizes that are multiples of 2^levels.

    Args:
        features: channels of the levels, from fine to coarse.
    """

    def __init__(self, ndim: int, channels: int, features: Sequence[int]) -> None:
        super().__init__()
        inputs = [channels, *features[:-1]]
        self.blocks = nn.ModuleList(convolutions(ndim, [a * 2**ndim, b, b]) for a, b in zip(inputs, features, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        out = []
        for block in self.blocks:
            x = block(space_to_depth(x, 2))
            out.append(x)
        return out
