"""LDDMM of points: Hamiltonian shooting of control points q with momenta p (model (44)).

    H(q, p) = 1/2 sum_ij k(q_i - q_j) p_i . p_j,    k(z) = sum_s w_s exp(-|z|^2 / (2 sigma_s^2))
    d_t q = dH/dp = v(q),    d_t p = -dH/dq,    d_t x = v(x) = sum_j k(x - q_j) p_j for every other point x.

H is conserved. The kernel has the height 1: one control point moves by its momentum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch

from rdmm.dynamics.base import InitialConditions
from rdmm.dynamics.integrator import Integrator
from rdmm.dynamics.solvers import State, runge_kutta_step
from rdmm.kernels.available import has_kernels
from rdmm.kernels.pairwise import half_squared_distance, reduce_pairs
from rdmm.regularizer.penalty import Penalty
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.spatial.measure import Measure
from rdmm.spatial.ops import require_finite
from rdmm.types import ConfigError, InputError, Tensor, repr_with_shapes


@dataclass(frozen=True, eq=False)
class Hamiltonian:
    """The rates of (q, p[, x]), (b, d, n) each, and Runge-Kutta steps of them."""

    sigmas: Sequence[float]
    weights: Sequence[float]

    def velocity(self, x: Tensor, q: Tensor, p: Tensor) -> Tensor:
        """v(x), (b, d, t)."""
        if has_kernels(x) and x.dtype == torch.float32:
            from rdmm.kernels.gaussian_sums import gaussian_sums

            return torch.stack([gaussian_sums(*item, self.sigmas, self.weights) for item in zip(x, q, p, strict=True)])
        items = (reduce_pairs(self._kernel, a.T, b.T, c.T, log_sum=False).T for a, b, c in zip(x, q, p, strict=True))
        return torch.stack(list(items))

    def force(self, q: Tensor, p: Tensor) -> Tensor:
        """-dH/dq_i = sum_j s_ij (q_i - q_j), s_ij = p_i . p_j sum_s w_s / sigma_s^2 exp(...): q_i sum_j s_ij less sum_j s_ij q_j."""
        if has_kernels(q) and q.dtype == torch.float32:
            from rdmm.kernels.gaussian_sums import gaussian_forces

            return torch.stack([gaussian_forces(*item, self.sigmas, self.weights) for item in zip(q, p, strict=True)])
        out = []
        for a, b in zip(q, p, strict=True):
            a = a - a.detach().mean(1, keepdim=True)  # the difference of two sums loses least around 0
            rows = torch.cat([a, b]).T.contiguous()
            sums = reduce_pairs(self._steepness, rows, rows, torch.cat([torch.ones_like(a[:1]), a]).T, log_sum=False).T
            out.append(a * sums[:1] - sums[1:])
        return torch.stack(out)

    def _kernel(self, x: Any, y: Any) -> Any:
        half = half_squared_distance(x, y)
        return sum(w * (half * (-1 / s**2)).exp() for s, w in zip(self.sigmas, self.weights, strict=True))

    def _steepness(self, x: Any, y: Any) -> Any:
        d = x.shape[-1] // 2
        half = half_squared_distance(x[:, :, :d], y[:, :, :d])
        steep = sum(w / s**2 * (half * (-1 / s**2)).exp() for s, w in zip(self.sigmas, self.weights, strict=True))
        return steep * (x[:, :, d:] * y[:, :, d:]).sum(-1)

    def __call__(self, y: State) -> State:
        q, p, *rest = y
        require_finite(p, "the momentum")
        return (self.velocity(q, q, p), self.force(q, p), *(self.velocity(x, q, p) for x in rest))

    def speed(self, y: State) -> float:
        """Narrowest sigmas that the fastest control point crosses in a unit of time."""
        v = self.velocity(y[0], y[0], y[1])
        return float(v.square().sum(1).max().sqrt()) / min(self.sigmas)

    def step(self, y: State, dt: float) -> State:
        """A Runge-Kutta step, used for method="semi_lagrangian": points need no interpolation."""
        return runge_kutta_step(self, y, dt)[0]


@dataclass(frozen=True, eq=False)
class PointFlow:
    """Points that move with the flow of the control points, from t = 0 to 1: the push-forward of any shape."""

    system: Hamiltonian
    integrator: Integrator
    q: Tensor
    p: Tensor

    __repr__ = repr_with_shapes

    @property
    def ndim(self) -> int:
        return int(self.q.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        points = x.flatten(2).to(self.q)
        q, p = (y.expand(len(points), *y.shape[1:]) for y in (self.q, self.p))
        return self.integrator(self.system, (q, p, points), (q, p))[2].view(x.shape).to(x)


@dataclass(frozen=True, eq=False)
class PointSnapshot:
    """A geodesic of control points at one time: points q, momenta p and velocities v(q), (b, d, n) each."""

    t: float
    points: Tensor
    momentum: Tensor
    velocity: Tensor

    __repr__ = repr_with_shapes

    @property
    def energy(self) -> Tensor:
        """(b,) 2 H = sum_i p_i . v(q_i)."""
        return (self.momentum * self.velocity).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class PointCoordinates:
    """The momenta of the control points of ``ic`` in one vector."""

    system: Hamiltonian
    ic: InitialConditions
    free_weights: ClassVar[bool] = False

    def pack(self, ic: InitialConditions) -> Tensor:
        return ic.momentum.flatten()

    def unpack(self, x: Tensor) -> InitialConditions:
        return replace(self.ic, momentum=x.view(self.ic.momentum.shape))

    def first_step(self, direction: Tensor) -> float:
        """The step whose velocity moves the fastest control point by a quarter of the narrowest sigma."""
        q = controls(self.ic)
        v = self.system.velocity(q, q, direction.view(q.shape))
        return 0.25 * min(self.system.sigmas) / max(float(v.square().sum(1).max().sqrt()), 1e-12)


@final
@dataclass(frozen=True)
class PointLDDMM:
    """Geodesics of control points; ``shoot`` gives the push-forward, moving -> fixed.

    Args:
        smoother: sigmas and weights of the kernel, in domain units. Its boundary has no effect on points.
        integrator: ``semi_lagrangian`` means Runge-Kutta steps here, each over at most COURANT of the narrowest sigma.
    """

    moves: ClassVar[type[Measure]] = Measure
    has_cells: ClassVar[bool] = False
    has_preweights: ClassVar[bool] = False
    conserves_energy: ClassVar[bool] = True

    smoother: MultiGaussian
    integrator: Integrator = field(default_factory=Integrator)

    def __post_init__(self) -> None:
        if self.smoother.unit != "domain":
            raise ConfigError("dynamics=points wants sigmas in domain units: set smoother.unit=domain")

    @property
    def system(self) -> Hamiltonian:
        return Hamiltonian(self.smoother.sigmas, self.smoother.weights)

    def shoot(self, ic: InitialConditions, source: Measure) -> PointFlow:
        """phi(1)."""
        require_finite(ic.momentum, "the initial momentum")
        return PointFlow(self.system, self.integrator, controls(ic, source), ic.momentum)

    def flow(self, ic: InitialConditions, source: Measure) -> tuple[PointFlow, PointFlow]:
        """phi(1) and its inverse: the geodesic shot back from its end."""
        ((q, p),) = self._trajectory(ic, source, (1.0,))
        return self.shoot(ic, source), PointFlow(self.system, self.integrator, q, -p)

    def geodesic(self, ic: InitialConditions, source: Measure, times: Sequence[float]) -> list[PointSnapshot]:
        """The control points at increasing ``times`` in [0, 1]."""
        states = self._trajectory(ic, source, times)
        return [PointSnapshot(t, q, p, self.system.velocity(q, q, p)) for t, (q, p) in zip(times, states, strict=True)]

    def _trajectory(self, ic: InitialConditions, source: Measure, times: Sequence[float]) -> list[State]:
        """(q, p) at ``times``."""
        start = (controls(ic, source), ic.momentum)
        return self.integrator.trajectory(self.system, start, start, times)

    def energy(self, ic: InitialConditions, source: Measure) -> Tensor:
        """(b,) 2 H = sum_ij k(q_i - q_j) p_i . p_j."""
        q, p = controls(ic, source), ic.momentum
        return (p * self.system.velocity(q, q, p)).flatten(1).sum(1)

    def complete(self, ic: InitialConditions, source: Measure) -> InitialConditions:
        """``ic`` with the points of ``source`` as its control points, where it names none."""
        return ic if ic.points is not None else replace(ic, points=controls(ic, source))

    def preconditioner(self, ic: InitialConditions) -> MultiGaussian:
        """The kernel; momenta of points are not preconditioned."""
        return self.smoother

    def coordinates(self, ic: InitialConditions, source: Measure, free_weights: bool, preconditioner: MultiGaussian) -> PointCoordinates:
        """The momenta."""
        return PointCoordinates(self.system, self.complete(ic, source))

    def shooting_fraction(self, fixed: Measure, voxel_of_sigma: float, preconditioner: MultiGaussian) -> float:
        """1: there is no shooting grid."""
        return 1.0

    def resized(self, ic: InitialConditions, fixed: Measure, fraction: float) -> InitialConditions:
        """``ic`` itself: there is no shooting grid."""
        return ic

    def weight_penalty(self, penalty: Penalty, ic: InitialConditions, source: Measure, step: int) -> Tensor:
        """(b,) zeros: there are no pre-weights."""
        return ic.momentum.new_zeros(ic.momentum.shape[0])

    def initial_sigma(self, ic: InitialConditions, source: Measure) -> Tensor | None:
        """None: there are no pre-weights."""
        return None


def controls(ic: InitialConditions, source: Measure | None = None) -> Tensor:
    """The control points of initial conditions; where they name none, the source's own points."""
    points = ic.points if ic.points is not None or source is None else source.points
    if points is None or points.shape != ic.momentum.shape:
        raise InputError(
            f"a momentum of points is (b, d, n) like its control points: {tuple(ic.momentum.shape)} for "
            f"{'none' if points is None else tuple(points.shape)} (initializer=controls makes both)"
        )
    return points


def farthest_points(x: Tensor, count: int) -> Tensor:
    """``count`` of the points x (d, n), or all if there are fewer.

    The first is the farthest from the mean; each next one is the farthest from those before it.
    """
    if count >= x.shape[1]:
        return x
    apart = (x - x.mean(1, keepdim=True)).square().sum(0)
    chosen, nearest = [], torch.full_like(apart, math.inf)
    index = int(apart.argmax())
    for _ in range(count):
        chosen.append(index)
        nearest = torch.minimum(nearest, (x - x[:, index : index + 1]).square().sum(0))
        index = int(nearest.argmax())
    return x[:, torch.tensor(chosen, device=x.device)]
