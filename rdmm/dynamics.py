"""Geodesic shooting: initial conditions to maps (MODEL.md section 3)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, final, runtime_checkable

import torch

from rdmm import ops
from rdmm.geodesic import EPDiff, Eulerian, Metric, Moment, SemiLagrangian, backtrace
from rdmm.grid import Grid
from rdmm.shape import Image
from rdmm.shooting import Integrator, State
from rdmm.smoother import MultiGaussian
from rdmm.transform import Dense
from rdmm.types import ConfigError, InputError, Tensor
from rdmm.weights import constant, local_sigma, smoothed


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

    def geodesic(self, ic: InitialConditions, source: Image, times: Sequence[float]) -> list[Moment]: ...


def exponential(v: Tensor, grid: Grid, steps: int) -> Tensor:
    """Displacement of the flow of -v over t in [0, 1], by scaling and squaring with at least ``steps`` steps."""
    squarings = max(0, math.ceil(math.log2(steps)))
    identity = grid.identity(v)
    u = backtrace(v, 2.0**-squarings, grid, identity)
    for _ in range(squarings):
        u = ops.compose(u, u, grid, identity)
    return u


@final
@dataclass(frozen=True)
class SVF:
    """Stationary velocity field: v = K m0, d_t phi = -(D phi) v."""

    smoother: MultiGaussian
    integrator: Integrator = field(default_factory=Integrator)

    def _velocity(self, ic: InitialConditions, source: Image) -> tuple[Tensor, Grid]:
        grid = ic.grid(source)
        ops.require_finite(ic.momentum, "the initial momentum")
        return self.smoother(ic.momentum, grid), grid

    def _flow(self, v: Tensor, grid: Grid, t: float = 1.0) -> Dense:
        if not self.integrator.eulerian:
            return Dense(exponential(v * t, grid, self.integrator.steps), grid)

        def rate(_: Tensor, y: State) -> State:
            ops.require_finite(y[0], "the map")
            return (-t * (v + ops.advect(y[0], v, grid)),)

        return Dense(self.integrator(rate, (torch.zeros_like(v),), (v,))[0], grid)

    def shoot(self, ic: InitialConditions, source: Image) -> Dense:
        """phi: target -> source."""
        return self._flow(*self._velocity(ic, source))

    def flow(self, ic: InitialConditions, source: Image) -> tuple[Dense, Dense]:
        """phi and its inverse, the flow of -v."""
        v, grid = self._velocity(ic, source)
        return self._flow(v, grid), self._flow(-v, grid)

    def energy(self, ic: InitialConditions, source: Image) -> Tensor:
        """(b,) <m0, v>."""
        v, grid = self._velocity(ic, source)
        return ops.inner(ic.momentum, v, grid)

    def geodesic(self, ic: InitialConditions, source: Image, times: Sequence[float]) -> list[Moment]:
        """The path at ``times``; the momentum of a stationary velocity does not move."""
        v, grid = self._velocity(ic, source)
        return [Moment(t, ic.momentum, v, self._flow(v, grid, t).displacement) for t in times]


class _Geodesic(ABC):
    """Shooting of the metric's geodesics; what LDDMM and RDMM share."""

    smoother: MultiGaussian
    integrator: Integrator

    @abstractmethod
    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[Metric, Tensor | None]:
        """The metric and the pre-weights h(0)."""

    def _trajectory(
        self, ic: InitialConditions, source: Image, times: Sequence[float], inverse: bool = False
    ) -> tuple[EPDiff, list[State]]:
        """The equation, and (m, u[, U]) at ``times``."""
        grid = ic.grid(source)
        ops.require_finite(ic.momentum, "the initial momentum")
        metric, h0 = self._initial(ic, grid)
        equation = EPDiff(metric, h0, grid.identity(ic.momentum))
        zero = torch.zeros_like(ic.momentum)
        start = (ic.momentum, zero, zero) if inverse else (ic.momentum, zero)
        system = Eulerian(equation) if self.integrator.eulerian else SemiLagrangian(equation)
        return equation, self.integrator.trajectory(system, start, [] if h0 is None else [h0], times)

    @final
    def shoot(self, ic: InitialConditions, source: Image) -> Dense:
        """phi(1): target -> source."""
        equation, ((_, u),) = self._trajectory(ic, source, (1.0,))
        return Dense(u, equation.metric.grid)

    @final
    def flow(self, ic: InitialConditions, source: Image) -> tuple[Dense, Dense]:
        """phi(1) and its inverse, both from the same geodesic."""
        equation, ((_, u, w),) = self._trajectory(ic, source, (1.0,), inverse=True)
        return Dense(u, equation.metric.grid), Dense(w, equation.metric.grid)

    @final
    def energy(self, ic: InitialConditions, source: Image) -> Tensor:
        """(b,) <m0, v0>."""
        grid = ic.grid(source)
        metric, h0 = self._initial(ic, grid)
        return ops.inner(ic.momentum, metric.velocity(ic.momentum, h0)[0], grid)

    @final
    def geodesic(self, ic: InitialConditions, source: Image, times: Sequence[float]) -> list[Moment]:
        """The geodesic at increasing ``times`` in [0, 1]."""
        equation, states = self._trajectory(ic, source, times)
        return [equation.moment(t, y) for t, y in zip(times, states, strict=True)]


@final
@dataclass(frozen=True)
class LDDMM(_Geodesic):
    """EPDiff of a constant metric: d_t m = -[(div v) m + (Dv)^T m + (Dm) v], v = K m."""

    smoother: MultiGaussian
    integrator: Integrator = field(default_factory=Integrator)

    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[Metric, Tensor | None]:
        if ic.weights is not None:
            raise ConfigError("these initial conditions hold pre-weights: use dynamics=rdmm, or leave the pre-weights out")
        return Metric(self.smoother, 0.0, grid), None


@final
@dataclass(frozen=True)
class RDMM(_Geodesic):
    """EPDiff of a metric that moves with the anatomy: v = K(w) m, w_i = G_sigma * h_i, h_i(t) = h_i(0) ∘ phi(t), and the
    source term + sum_i G_sigma * (m . nu_i) grad h_i (RDMM paper, section 3).

    Args:
        weight_sigma: sigma of G, in the smoother's unit.
    """

    smoother: MultiGaussian
    integrator: Integrator = field(default_factory=Integrator)
    weight_sigma: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.weight_sigma < math.inf:
            raise ConfigError(f"dynamics.weight_sigma must be >= 0, not {self.weight_sigma}")

    def preweights(self, ic: InitialConditions, grid: Grid) -> Tensor:
        """h(0): the given ones, or the smoother's own everywhere."""
        h = ic.weights
        if h is None:
            return constant(self.smoother.weights, grid, ic.momentum)
        if h.shape[1:] != (len(self.smoother.sigmas), *grid.shape):
            raise ConfigError(f"pre-weights are (b, {len(self.smoother.sigmas)}, *{grid.shape}), one per Gaussian; got {tuple(h.shape)}")
        return h

    def local_sigma(self, h: Tensor, grid: Grid) -> Tensor:
        """sigma(x) of pre-weights, (b, 1, *s) in millimetres."""
        w = smoothed(h, self.weight_scale(grid), grid)
        return local_sigma(w, self.smoother.scales(grid)) * grid.length

    def weight_scale(self, grid: Grid) -> float:
        """sigma of G in domain units."""
        return self.weight_sigma / grid.length if self.smoother.unit == "mm" else self.weight_sigma

    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[Metric, Tensor | None]:
        return Metric(self.smoother, self.weight_scale(grid), grid), self.preweights(ic, grid)
