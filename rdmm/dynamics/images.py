"""What dynamics of images share: without pre-weights, and with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch

from rdmm.dynamics.base import Coordinates, InitialConditions, Snapshot
from rdmm.dynamics.coordinates import MomentumCoordinates, PreweightCoordinates
from rdmm.dynamics.integrator import Integrator
from rdmm.regularizer.metric import Metric
from rdmm.regularizer.penalty import Penalty
from rdmm.regularizer.smoother import MultiGaussian, Unit, check_length, to_domain
from rdmm.regularizer.weights import constant, local_sigma, smooth
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.ops import resize
from rdmm.spatial.transform import Dense
from rdmm.types import ConfigError, Tensor, require_finite_fields

LEAST_WEIGHT = 1e-3
"""A Gaussian is in use where its squared pre-weight is above this somewhere. Smoothed regions leave rounding elsewhere. Not measured."""


@dataclass(frozen=True)
class ImageDynamics(ABC):
    """A dynamics of images with one metric everywhere. A subclass gives ``flow``, ``energy`` and ``geodesic`` (Dynamics)."""

    moves: ClassVar[type[Image]] = Image
    has_cells: ClassVar[bool] = True
    has_preweights: ClassVar[bool] = False
    conserves_energy: ClassVar[bool] = True

    smoother: MultiGaussian
    integrator: Integrator = field(default_factory=Integrator)

    @abstractmethod
    def flow(self, ic: InitialConditions, source: Image) -> tuple[Dense, Dense]:
        """phi(1): target -> source, and its inverse."""

    @abstractmethod
    def energy(self, ic: InitialConditions, source: Image) -> Tensor:
        """(b,) <m0, v0>."""

    @abstractmethod
    def geodesic(self, ic: InitialConditions, source: Image, times: Sequence[float]) -> list[Snapshot]:
        """The geodesic at increasing ``times`` in [0, 1]."""

    def shoot(self, ic: InitialConditions, source: Image) -> Dense:
        """phi(1): target -> source."""
        return self.flow(ic, source)[0]

    def complete(self, ic: InitialConditions, source: Image) -> InitialConditions:
        """``ic`` itself."""
        return ic

    def preconditioner(self, ic: InitialConditions) -> MultiGaussian:
        """The smoother itself."""
        return self.smoother

    def coordinates(self, ic: InitialConditions, source: Image, free_weights: bool, preconditioner: MultiGaussian) -> Coordinates:
        """z of the momentum on the shooting grid."""
        return MomentumCoordinates(preconditioner, ic.grid(source), ic, is_metric=not self.has_preweights)

    def shooting_fraction(self, fixed: Image, voxel_of_sigma: float, preconditioner: MultiGaussian) -> float:
        """Resolution of the shooting grid whose voxel is ``voxel_of_sigma`` narrowest sigmas, over that of ``fixed``; at most 1."""
        return min(1.0, min(fixed.grid.spacing) / (voxel_of_sigma * preconditioner.narrowest(fixed.grid)))

    def resized(self, ic: InitialConditions, fixed: Image, fraction: float) -> InitialConditions:
        """``ic`` as a start on a shooting grid of ``fraction`` of the resolution of ``fixed``.

        The momentum is interpolated linearly: this damps the shortest waves of a coarse grid, which a short search leaves undetermined.
        """
        shape = fixed.grid.scaled(fraction).shape
        return replace(ic.resized(shape), momentum=resize(ic.momentum, shape))

    def refined(self, ic: InitialConditions, factor: int) -> tuple[Self, InitialConditions]:
        """The same geodesic with voxels and steps ``factor`` times smaller."""
        shape = [factor * (n - 1) + 1 for n in ic.momentum.shape[2:]]
        integrator = replace(self.integrator, steps=factor * self.integrator.steps)
        return replace(self, integrator=integrator), ic.resized(shape)

    def weight_penalty(self, penalty: Penalty, ic: InitialConditions, source: Image, step: int) -> Tensor:
        """(b,) zeros: there are no pre-weights."""
        return ic.momentum.new_zeros(ic.momentum.shape[0])

    def initial_sigma(self, ic: InitialConditions, source: Image) -> Tensor | None:
        """None: sigma is the same everywhere."""
        return None


@dataclass(frozen=True)
class PreweightedDynamics(ImageDynamics):
    """A dynamics of images whose metric differs by region: v = K(w) m with w_i = G_sigma * h_i of pre-weights h.

    Args:
        weight_sigma: sigma of G.
        weight_unit: unit of weight_sigma: ``domain`` or ``mm``, whatever the unit of the smoother's sigmas.
    """

    has_preweights: ClassVar[bool] = True

    weight_sigma: float = 0.05
    weight_unit: Unit = "domain"

    def __post_init__(self) -> None:
        require_finite_fields(self)
        check_length("dynamics.weight_sigma", self.weight_sigma, "dynamics.weight_unit", self.weight_unit)

    def weight_scale(self, grid: Grid) -> float:
        """sigma of G in domain units."""
        return to_domain(self.weight_sigma, self.weight_unit, grid)

    def metric(self, grid: Grid) -> Metric:
        """m -> v on a grid."""
        return Metric(self.smoother, self.weight_scale(grid), grid)

    def preweights(self, ic: InitialConditions, grid: Grid) -> Tensor:
        """h(0): the given ones, or the smoother's own everywhere."""
        h = ic.weights
        if h is None:
            return constant(self.smoother.weights, grid, ic.momentum)
        if h.shape[1:] != (len(self.smoother.sigmas), *grid.shape):
            raise ConfigError(f"pre-weights are (b, {len(self.smoother.sigmas)}, *{grid.shape}), one per Gaussian; got {tuple(h.shape)}")
        return h

    def local_sigma(self, h: Tensor, grid: Grid) -> Tensor:
        """sigma(x) of pre-weights, (b, 1, *s) in millimeters."""
        w = smooth(h, self.weight_scale(grid), grid)
        return local_sigma(w, self.smoother.scales(grid)) * grid.length

    def complete(self, ic: InitialConditions, source: Image) -> InitialConditions:
        """``ic`` with the smoother's own weights everywhere, where it has no pre-weights."""
        return ic if ic.weights is not None else replace(ic, weights=self.preweights(ic, ic.grid(source)))

    def preconditioner(self, ic: InitialConditions) -> MultiGaussian:
        """The smoother with the largest share of each Gaussian, its squared pre-weight over the largest one at the same point; itself where
        the pre-weights are its own everywhere.

        A Gaussian counts by what it is where it is used, however heavy those of other regions are.
        """
        h = ic.weights
        if h is None or torch.equal(h, constant(self.smoother.weights, Grid.unit(h.shape[2:]), h).expand_as(h)):
            return self.smoother
        squares = h.detach().double().square().flatten(2)
        used = (squares / squares.amax(1, keepdim=True)).where(squares > LEAST_WEIGHT, 0).amax((0, 2))
        return replace(self.smoother, weights=(used / used.sum()).tolist())

    def coordinates(self, ic: InitialConditions, source: Image, free_weights: bool, preconditioner: MultiGaussian) -> Coordinates:
        """z of the momentum and, with ``free_weights``, y of the pre-weights, where ``ic`` has them."""
        grid = ic.grid(source)
        momentum = MomentumCoordinates(preconditioner, grid, ic)
        return PreweightCoordinates(momentum, ic.weights, self.weight_scale(grid)) if free_weights and ic.weights is not None else momentum

    def weight_penalty(self, penalty: Penalty, ic: InitialConditions, source: Image, step: int) -> Tensor:
        """(b,) Reg(h(0)); 0 where ``ic`` has no pre-weights."""
        if ic.weights is None:
            return super().weight_penalty(penalty, ic, source, step)
        grid = ic.grid(source)
        return penalty(ic.weights, self.weight_scale(grid), self.smoother, grid, step)

    def initial_sigma(self, ic: InitialConditions, source: Image) -> Tensor | None:
        """sigma(x) of the pre-weights of ``ic``, (b, 1, *s) in millimeters; None where it has none."""
        return None if ic.weights is None else self.local_sigma(ic.weights, ic.grid(source))
