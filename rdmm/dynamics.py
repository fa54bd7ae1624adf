"""Geodesic shooting: initial conditions to maps (MODEL.md section 3).

Each dynamics comes in two forms. *Eulerian*: the papers' equations for (m, phi), central differences, for torchdiffeq.
*Semi-Lagrangian*: steps phi <- phi ∘ psi, with psi traced back along v, and coadjoint transport of the momentum, its exact
solution where there is no source. m(t) = |D phi| (D phi)^T (m0 ∘ phi) + r(t) takes m0 from the start, so that it is
interpolated once, however many steps there are; r, what RDMM's source has added, goes along step by step:
r <- |D psi| (D psi)^T ((r + dt source) ∘ psi). LDDMM extrapolates the velocity to mid-step (second order in dt).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, final, runtime_checkable

import torch

from rdmm import ops
from rdmm.grid import Grid
from rdmm.shape import Image
from rdmm.shooting import Integrator, State
from rdmm.smoother import MultiGaussian
from rdmm.transform import Dense
from rdmm.types import ConfigError, InputError, Tensor
from rdmm.weights import constant, local_sigma, smoothed


@dataclass(frozen=True, eq=False)
class InitialConditions:
    """What determines a geodesic; both on the shooting grid, which is the source's resampled to the momentum's shape.

    Args:
        momentum: m0 (b, d, *s).
        weights: pre-weights h(0) (b, n, *s) with sum_i h_i^2 = 1, or None: the smoother's own, everywhere.
    """

    momentum: Tensor
    weights: Tensor | None = None

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


@dataclass(frozen=True, eq=False)
class Moment:
    """The geodesic at one time: momentum, velocity (b, d, *s), displacement of phi (b, d, *s), weights w (b, n, *s) or None."""

    t: float
    momentum: Tensor
    velocity: Tensor
    displacement: Tensor
    weights: Tensor | None = None


@runtime_checkable
class Dynamics(Protocol):
    """Initial conditions to the map that pulls the source back, phi: target -> source."""

    smoother: MultiGaussian
    integrator: Integrator

    def shoot(self, ic: InitialConditions, source: Image) -> Dense: ...

    def flow(self, ic: InitialConditions, source: Image) -> tuple[Dense, Dense]: ...

    def energy(self, ic: InitialConditions, source: Image) -> Tensor: ...

    def geodesic(self, ic: InitialConditions, source: Image, times: Sequence[float]) -> list[Moment]: ...


def coadjoint(u: Tensor, mu: Tensor, grid: Grid, identity: Tensor) -> Tensor:
    """|D phi| (D phi)^T (mu ∘ phi) for phi = id + u: transport of a momentum."""
    columns = ops.map_jacobian(u, grid)
    carried = ops.sample(mu, identity + u, grid)
    pulled = torch.stack([(c * carried).sum(1) for c in columns], 1)
    return ops.determinant(columns).unsqueeze(1) * pulled


def coadjoint_rate(m: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """ad*_v m = (div v) m + (Dv)^T m + (Dm) v, the first and last in flux form: sum_j d_j (v_j m)."""
    flux = [ops.partial(v[:, j : j + 1] * m, j, grid) for j in range(grid.ndim)]
    turned = torch.stack([(dv * m).sum(1) for dv in ops.jacobian(v, grid)], 1)
    return sum(flux, turned)


def eulerian_rates(m: Tensor, u: Tensor, v: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(-ad*_v m, -(D phi) v) for phi = id + u."""
    if ops.compiled(m):
        from rdmm.epdiff import rates

        return rates(m, u, v, grid.spacing)
    return -coadjoint_rate(m, v, grid), -(v + ops.advect(u, v, grid))


def backtrace(v: Tensor, dt: float, grid: Grid, identity: Tensor) -> Tensor:
    """Displacement of psi(x) = x - dt v(x - dt/2 v(x)): where the point that arrives at x was dt before."""
    return -dt * ops.sample(v, identity - 0.5 * dt * v, grid)


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


@dataclass(frozen=True)
class _Metric:
    """v = K m, or K(w) m with w_i = G_sigma * h_i where there are pre-weights."""

    smoother: MultiGaussian
    weight_sigma: float
    grid: Grid

    def weights(self, h: Tensor | None) -> Tensor | None:
        return None if h is None else smoothed(h, self.weight_sigma, self.grid)

    def velocity(self, m: Tensor, h: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """v and the nu_i = K_{sigma_i} * (w_i m) (none where the weights are constant)."""
        w = self.weights(h)
        if w is None:
            return self.smoother(m, self.grid), []
        nu = self.smoother.parts(m, w, self.grid)
        return sum((w[:, i : i + 1] * n for i, n in enumerate(nu[1:], 1)), w[:, :1] * nu[0]), nu

    def potentials(self, m: Tensor, nu: list[Tensor]) -> Tensor:
        """q_i = G_sigma * (m . nu_i), (b, n, *s): half of dE / dh_i."""
        return smoothed(torch.stack([(m * n).sum(1) for n in nu], 1), self.weight_sigma, self.grid)


@dataclass(frozen=True, eq=False)
class _Eulerian:
    """d_t (m, u[, U]) with phi = id + u and Phi = phi^{-1} = id + U.

    In flux form, (div v) m + (Dm) v = sum_j d_j (v_j m), central differences conserve LDDMM's energy to rounding.
    """

    metric: _Metric
    m0: Tensor
    h0: Tensor | None
    identity: Tensor

    def start(self, inverse: bool) -> State:
        zero = torch.zeros_like(self.m0)
        return (self.m0, zero, zero) if inverse else (self.m0, zero)

    def carried_weights(self, u: Tensor) -> Tensor | None:
        return None if self.h0 is None else ops.sample(self.h0, self.identity + u, self.metric.grid)

    def __call__(self, _: Tensor, y: State) -> State:
        m, u = y[:2]
        grid = self.metric.grid
        ops.require_finite(m, "the momentum")
        h = self.carried_weights(u)
        v, nu = self.metric.velocity(m, h)
        rate, motion = eulerian_rates(m, u, v, grid)
        if h is not None:
            q = self.metric.potentials(m, nu)
            rate = rate + torch.stack([(q * dh).sum(1) for dh in ops.jacobian(h, grid)], 1)
        rates = (rate, motion)
        return rates if len(y) == 2 else (*rates, ops.sample(v, self.identity + y[2], grid))

    def maps(self, y: State) -> State:
        return y[1:]

    def moment(self, t: float, y: State) -> Moment:
        m, u = y[:2]
        h = self.carried_weights(u)
        return Moment(t, m, self.metric.velocity(m, h)[0], u, self.metric.weights(h))


@dataclass(frozen=True, eq=False)
class _SemiLagrangian:
    """Steps of (u, U, v, r): displacements of phi and of Phi (None where it is not asked for), the last velocity, and the
    momentum that the source has added, where there is one."""

    metric: _Metric
    m0: Tensor
    h0: Tensor | None
    identity: Tensor

    def start(self, inverse: bool) -> State:
        zero = torch.zeros_like(self.m0)
        return zero, zero if inverse else None, None, None if self.h0 is None else zero  # type: ignore[return-value]

    def carried_weights(self, u: Tensor) -> Tensor | None:
        return None if self.h0 is None else ops.sample(self.h0, self.identity + u, self.metric.grid)

    def state(self, u: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """m and h at phi = id + u."""
        m = coadjoint(u, self.m0, self.metric.grid, self.identity)
        return m if added is None else m + added, self.carried_weights(u)

    def step(self, y: State, dt: float) -> State:
        u, big, last, added = y
        grid, identity = self.metric.grid, self.identity
        m, h = self.state(u, added)
        v, nu = self.metric.velocity(m, h)
        # Half a step ahead; not with a source, through which an extrapolated velocity would feed itself.
        mid = v if last is None or h is not None else 1.5 * v - 0.5 * last
        psi = backtrace(mid, dt, grid, identity)
        u = ops.compose(u, psi, grid, identity)
        if big is not None:
            big = ops.compose(backtrace(mid, -dt, grid, identity), big, grid, identity)
        if h is not None:
            q = self.metric.potentials(m, nu)
            source = torch.stack([(q * dh).sum(1) for dh in ops.jacobian(h, grid)], 1)
            added = coadjoint(psi, added + dt * source, grid, identity)
        return u, big, v, added

    def maps(self, y: State) -> State:
        return y[:2]

    def moment(self, t: float, y: State) -> Moment:
        u = y[0]
        m, h = self.state(u, y[3])
        return Moment(t, m, self.metric.velocity(m, h)[0], u, self.metric.weights(h))


class _Geodesic(ABC):
    """Shooting of the metric's geodesics; what LDDMM and RDMM share."""

    smoother: MultiGaussian
    integrator: Integrator

    @abstractmethod
    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[_Metric, Tensor | None]:
        """The metric and the pre-weights h(0)."""

    def _system(self, ic: InitialConditions, source: Image) -> _Eulerian | _SemiLagrangian:
        grid = ic.grid(source)
        ops.require_finite(ic.momentum, "the initial momentum")
        metric, h0 = self._initial(ic, grid)
        kind = _Eulerian if self.integrator.eulerian else _SemiLagrangian
        return kind(metric, ic.momentum, h0, grid.identity(ic.momentum))

    def _trajectory(self, ic: InitialConditions, source: Image, times: Sequence[float], inverse: bool):  # type: ignore[no-untyped-def]
        system = self._system(ic, source)
        # What a right-hand side closes over: Eulerian ones have the momentum in their state, semi-Lagrangian steps not.
        params = [x for x in (system.h0, None if self.integrator.eulerian else ic.momentum) if x is not None]
        return system, self.integrator.trajectory(system, system.start(inverse), params, times)

    @final
    def shoot(self, ic: InitialConditions, source: Image) -> Dense:
        """phi(1): target -> source."""
        system, (y,) = self._trajectory(ic, source, (1.0,), inverse=False)
        return Dense(system.maps(y)[0], system.metric.grid)

    @final
    def flow(self, ic: InitialConditions, source: Image) -> tuple[Dense, Dense]:
        """phi(1) and its inverse, both from the same geodesic."""
        system, (y,) = self._trajectory(ic, source, (1.0,), inverse=True)
        u, big = system.maps(y)
        return Dense(u, system.metric.grid), Dense(big, system.metric.grid)

    @final
    def energy(self, ic: InitialConditions, source: Image) -> Tensor:
        """(b,) <m0, v0>."""
        grid = ic.grid(source)
        metric, h0 = self._initial(ic, grid)
        return ops.inner(ic.momentum, metric.velocity(ic.momentum, h0)[0], grid)

    @final
    def geodesic(self, ic: InitialConditions, source: Image, times: Sequence[float]) -> list[Moment]:
        """The geodesic at increasing ``times`` in [0, 1]."""
        system, states = self._trajectory(ic, source, times, inverse=False)
        return [system.moment(t, y) for t, y in zip(times, states, strict=True)]


@final
@dataclass(frozen=True)
class LDDMM(_Geodesic):
    """EPDiff of a constant metric: d_t m = -[(div v) m + (Dv)^T m + (Dm) v], v = K m."""

    smoother: MultiGaussian
    integrator: Integrator = field(default_factory=Integrator)

    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[_Metric, Tensor | None]:
        if ic.weights is not None:
            raise ConfigError("these initial conditions hold pre-weights: use dynamics=rdmm, or leave the pre-weights out")
        return _Metric(self.smoother, 0.0, grid), None


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

    def _initial(self, ic: InitialConditions, grid: Grid) -> tuple[_Metric, Tensor | None]:
        return _Metric(self.smoother, self.weight_scale(grid), grid), self.preweights(ic, grid)
