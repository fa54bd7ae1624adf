"""What every dynamics shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rdmm.dynamics.integrator import Integrator
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Dense
from rdmm.types import InputError, Tensor


@dataclass(frozen=True, eq=False)
class InitialConditions:
    """What determines a geodesic. Of images, both are on the shooting grid: the source's resampled to the momentum's shape.

    Args:
        momentum: m0 (b, d, *s); of points (b, d, n).
        weights: pre-weights h(0) (b, n, *s) with sum_i h_i^2 = 1, or None: the smoother's own, everywhere.
        points: control points (b, d, n) of PointLDDMM; None: the source's own.
    """

    momentum: Tensor
    weights: Tensor | None = None
    points: Tensor | None = None

    def grid(self, source: Image) -> Grid:
        """The shooting grid."""
        shape = tuple(self.momentum.shape[2:])
        if self.momentum.shape[1] != source.grid.ndim or len(shape) != source.grid.ndim:
            raise InputError(f"a momentum for a {source.grid.ndim}D shape is (b, {source.grid.ndim}, *s), not {tuple(self.momentum.shape)}")
        return source.grid.resized(shape)

    def resized(self, shape: Sequence[int]) -> InitialConditions:
        """On another shooting grid: m0 is a density in domain units, so its values stay."""
        h = None if self.weights is None else ops.resize(self.weights, tuple(shape))
        if h is not None:
            h = h / h.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        return InitialConditions(ops.resize(self.momentum, tuple(shape)), h)


@runtime_checkable
class Dynamics(Protocol):
    """Initial conditions to the map that pulls the source back, phi: target -> source."""

    smoother: MultiGaussian
    integrator: Integrator

    def shoot(self, ic: InitialConditions, source: Image) -> Dense: ...

    def flow(self, ic: InitialConditions, source: Image) -> tuple[Dense, Dense]: ...

    def energy(self, ic: InitialConditions, source: Image) -> Tensor: ...

    def geodesic(self, ic: InitialConditions, source: Image, times: Sequence[float]) -> list[Snapshot]: ...


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The geodesic at one time: momentum, velocity (b, d, *s), displacement of phi (b, d, *s), weights w (b, n, *s) or None."""

    t: float
    momentum: Tensor
    velocity: Tensor
    displacement: Tensor
    weights: Tensor | None = None
