"""The vector that an optimizer searches in, for each kind of initial conditions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdmm.dynamics.base import Dynamics, InitialConditions
from rdmm.dynamics.points import PointLDDMM, controls
from rdmm.dynamics.rdmm import RDMM
from rdmm.regularizer.weights import normalize, parameters
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor

PREWEIGHT_SCALE = 30.0
"""Of the pre-weights against the momentum: one step moves them this much further. At 1 they hardly leave their start."""


@dataclass(frozen=True, eq=False)
class ImageCoordinates:
    """(z, y) in one vector: m0 = K^{1/2} (K + delta)^{-1} z, model (27), and h = normalize(p + c G * y) with the start's p,
    model (28), both scaled to L2 over the domain, so that 1/2 |z|^2 is the velocity's energy and gradients do not depend on the resolution.

    G is the weights' own Gaussian: what it would take out of h moves no velocity, but makes the source term rough.
    """

    dynamics: Dynamics
    grid: Grid
    shape: torch.Size
    start: Tensor | None

    @property
    def scale(self) -> float:
        return self.grid.cell**-0.5

    def momentum(self, z: Tensor, inverse: bool = False) -> Tensor:
        return self.dynamics.smoother.precondition(z, self.grid, inverse=inverse)

    def pack(self, ic: InitialConditions) -> Tensor:
        """The vector of ``ic``, whose weights are the start's."""
        parts = [self.momentum(ic.momentum, inverse=True)]
        if self.start is not None:
            parts.append(torch.zeros_like(self.start))
        return torch.cat([x.flatten() for x in parts]) / self.scale

    def unpack(self, x: Tensor) -> InitialConditions:
        size = self.shape.numel()
        momentum = self.momentum((x[:size] * self.scale).view(self.shape))
        if self.start is None:
            return InitialConditions(momentum)
        assert isinstance(self.dynamics, RDMM)
        y = (x[size:] * self.scale).view(self.start.shape)
        p = parameters(self.start) + PREWEIGHT_SCALE * gaussian(y, self.dynamics.weight_scale(self.grid), self.grid)
        return InitialConditions(momentum, normalize(p))

    def first_step(self, direction: Tensor) -> float:
        """The step whose velocity moves the fastest point by one voxel."""
        z = (direction[: self.shape.numel()] * self.scale).view(self.shape)
        v = self.dynamics.smoother(self.momentum(z), self.grid)
        fastest = float(torch.stack([v[:, i].abs().max() / h for i, h in enumerate(self.grid.spacing)]).max())
        return 1.0 / max(fastest, 1e-12)


@dataclass(frozen=True, eq=False)
class PointCoordinates:
    """The momenta of control points in one vector."""

    dynamics: PointLDDMM
    ic: InitialConditions

    def pack(self, ic: InitialConditions) -> Tensor:
        return ic.momentum.flatten()

    def unpack(self, x: Tensor) -> InitialConditions:
        return InitialConditions(x.view(self.ic.momentum.shape), None, self.ic.points)

    def first_step(self, direction: Tensor) -> float:
        """The step whose velocity moves the fastest control point by a quarter of the narrowest sigma."""
        ic = self.unpack(direction)
        v = self.dynamics.system.velocity(controls(ic), controls(ic), ic.momentum)
        return 0.25 * min(self.dynamics.smoother.sigmas) / max(float(v.square().sum(1).max().sqrt()), 1e-12)
