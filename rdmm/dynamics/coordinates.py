"""The vector that an optimizer searches in, for each kind of initial conditions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rdmm.dynamics.base import InitialConditions, Start
from rdmm.regularizer.smoother import DELTA, MultiGaussian
from rdmm.regularizer.weights import normalize, parameters
from rdmm.spatial import ops
from rdmm.spatial.gaussian import Filter, Gain, gaussian
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor

PREWEIGHT_SCALE = 30.0
"""Scale of the pre-weight variables relative to the momentum variables. At 1, pre-weights hardly leave their start. On scenes with a known
strain, 10 and 100 end with larger errors and less of the strain in sigma(x) than 30 (docs/preweights.md)."""

LEAST_START = 0.01
"""Free pre-weights start no lower: at p = 0 the derivative of h = p^2 / |p^2| is 0, so an h of 0 could never rise. It changes the
start's squared weights by 1e-4 at most."""


@dataclass(frozen=True, eq=False)
class MomentumCoordinates:
    """z, with m0 = K^{1/2} (K + delta)^{-1} z, model (27), in the waves of K and scaled to L2 over the domain.

    With K = B S B^T and G = S^{1/2} (S + delta)^{-1}: m0 = B G z, v0 = K m0 = B S G z and <m0, v0> = z^T S G^2 z, near |z|^2, by one
    transform each and without a filter. Gradients do not depend on the resolution. Pre-weights stay as in ``ic``.

    Args:
        smoother: K. Where the metric of the geodesic differs by region, it only preconditions the search.
        is_metric: whether K is the metric of the geodesic.
    """

    smoother: MultiGaussian
    grid: Grid
    ic: InitialConditions
    is_metric: bool = False
    free_weights: bool = False

    @property
    def scale(self) -> float:
        return self.grid.cell**-0.5

    def pack(self, ic: InitialConditions) -> Tensor:
        inverse = self._filter("inverse root")
        return inverse.scale(inverse.analyze(ic.momentum)).flatten() / self.scale

    def unpack(self, x: Tensor) -> InitialConditions:
        start = Start(self._velocity(x), self._energy(x)) if self.is_metric else None
        return replace(self.ic, momentum=self._field(x, "root"), start=start)

    def _energy(self, x: Tensor) -> Tensor:
        share = self._filter("root").gains * self._filter("filtered root").gains
        return ops.total(x.view(*self.ic.momentum.shape[:2], *share.shape).square() * share)

    def first_step(self, direction: Tensor) -> float:
        """The step whose velocity moves the fastest point by one voxel."""
        v = self._velocity(direction)
        fastest = float(torch.stack([v[:, i].abs().max() / h for i, h in enumerate(self.grid.spacing)]).max())
        return 1.0 / max(fastest, 1e-12)

    def _velocity(self, x: Tensor) -> Tensor:
        return self._field(x, "filtered root")

    def _field(self, x: Tensor, gain: Gain) -> Tensor:
        f = self._filter(gain)
        return f.synthesize(f.scale((x * self.scale).view(*self.ic.momentum.shape[:2], *f.gains.shape)))

    def _filter(self, gain: Gain) -> Filter:
        return self.smoother.filter(self.grid, self.ic.momentum, gain, DELTA)


@dataclass(frozen=True, eq=False)
class PreweightCoordinates:
    """(y, z) in one vector: z of the momentum, and h = normalize(p + PREWEIGHT_SCALE G * y) with the p of ``start``, model (28).

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
        """Entries of y."""
        return self.start.numel()

    def pack(self, ic: InitialConditions) -> Tensor:
        return torch.cat([torch.zeros_like(self.start).flatten(), self.momentum.pack(ic)])

    def unpack(self, x: Tensor) -> InitialConditions:
        ic, grid = self.momentum.unpack(x[self.size :]), self.momentum.grid
        y = (x[: self.size] * self.momentum.scale).view(self.start.shape)
        p = parameters(self.start.clamp_min(LEAST_START)) + PREWEIGHT_SCALE * gaussian(y, self.weight_scale, grid)
        return replace(ic, weights=normalize(p))

    def first_step(self, direction: Tensor) -> float:
        return self.momentum.first_step(direction[self.size :])
