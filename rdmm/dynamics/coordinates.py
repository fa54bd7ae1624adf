"""The vector that an optimizer searches in, for each kind of initial conditions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rdmm.dynamics.base import InitialConditions
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.regularizer.weights import normalize, parameters
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor

PREWEIGHT_SCALE = 30.0
"""Scale of the pre-weight variables relative to the momentum variables. At 1, pre-weights hardly leave their start; 30 itself is not
measured."""

LEAST_START = 0.01
"""Free pre-weights start no lower: at p = 0 the derivative of h = p^2 / |p^2| is 0, so an h of 0 could never rise. It changes the
start's squared weights by 1e-4 at most."""


@dataclass(frozen=True, eq=False)
class MomentumCoordinates:
    """z, with m0 = K^{1/2} (K + delta)^{-1} z, model (27), scaled to L2 over the domain: 1/2 |z|^2 is the velocity's energy, and gradients
    do not depend on the resolution. Pre-weights stay as in ``ic``."""

    smoother: MultiGaussian
    grid: Grid
    ic: InitialConditions
    free_weights: bool = False

    @property
    def scale(self) -> float:
        return self.grid.cell**-0.5

    def pack(self, ic: InitialConditions) -> Tensor:
        return self.smoother.precondition(ic.momentum, self.grid, inverse=True).flatten() / self.scale

    def unpack(self, x: Tensor) -> InitialConditions:
        return replace(self.ic, momentum=self._momentum(x))

    def first_step(self, direction: Tensor) -> float:
        """The step whose velocity moves the fastest point by one voxel."""
        v = self.smoother(self._momentum(direction), self.grid)
        fastest = float(torch.stack([v[:, i].abs().max() / h for i, h in enumerate(self.grid.spacing)]).max())
        return 1.0 / max(fastest, 1e-12)

    def _momentum(self, x: Tensor) -> Tensor:
        return self.smoother.precondition((x * self.scale).view(self.ic.momentum.shape), self.grid)


@dataclass(frozen=True, eq=False)
class PreweightCoordinates:
    """(z, y) in one vector: z of the momentum, and h = normalize(p + PREWEIGHT_SCALE G * y) with the p of ``start``, model (28).

    Pre-weights of 0 start at LEAST_START.

    G is the weights' own Gaussian: components of h that G removes do not change the velocity but roughen the source term, so y is
    smoothed first.

    Args:
        start: pre-weights (b, n, *s) at y = 0.
        weight_scale: sigma of G, in domain units.
    """

    momentum: MomentumCoordinates
    start: Tensor
    weight_scale: float
    free_weights: bool = True

    @property
    def size(self) -> int:
        """Entries of z."""
        return self.momentum.ic.momentum.numel()

    def pack(self, ic: InitialConditions) -> Tensor:
        return torch.cat([self.momentum.pack(ic), torch.zeros_like(self.start).flatten()])

    def unpack(self, x: Tensor) -> InitialConditions:
        ic, grid = self.momentum.unpack(x[: self.size]), self.momentum.grid
        y = (x[self.size :] * self.momentum.scale).view(self.start.shape)
        p = parameters(self.start.clamp_min(LEAST_START)) + PREWEIGHT_SCALE * gaussian(y, self.weight_scale, grid)
        return replace(ic, weights=normalize(p))

    def first_step(self, direction: Tensor) -> float:
        return self.momentum.first_step(direction[: self.size])
