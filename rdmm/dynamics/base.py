"""What every dynamics provides: the map of initial conditions, its search coordinates, its penalty and its snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rdmm.regularizer.penalty import Penalty
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.regularizer.weights import local_sigma
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.high_order.resampling import resize_momentum
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.spatial.transform import Transform
from rdmm.types import ConfigError, InputError, Tensor, repr_with_shapes


@dataclass(frozen=True, eq=False)
class Start:
    """What a search knows of a geodesic at t = 0: the velocity v0 = K m0 (b, d, *s), and the energy <m0, v0> (b,)."""

    velocity: Tensor
    energy: Tensor


@dataclass(frozen=True, eq=False)
class InitialConditions:
    """Initial conditions of a geodesic. For images, momentum and weights live on the shooting grid.

    Args:
        momentum: m0 (b, d, *s); of points (b, d, n).
        weights: pre-weights h(0) (b, n, *s) with sum_i h_i^2 = 1, or None: the smoother's own, everywhere.
        points: control points (b, d, n) of PointLDDMM; None: the source's own.
        start: velocity and energy of this momentum, where they are known already.
    """

    momentum: Tensor
    weights: Tensor | None = None
    points: Tensor | None = None
    start: Start | None = None

    __repr__ = repr_with_shapes

    def grid(self, source: Image) -> Grid:
        """The shooting grid: that of ``source``, resampled to the momentum's shape."""
        shape = tuple(self.momentum.shape[2:])
        if self.momentum.shape[1] != source.grid.ndim or len(shape) != source.grid.ndim:
            raise InputError(f"a momentum for a {source.grid.ndim}D shape is (b, {source.grid.ndim}, *s), not {tuple(self.momentum.shape)}")
        return source.grid.resized(shape)

    def resized(self, shape: Sequence[int]) -> InitialConditions:
        """On another shooting grid: a momentum with the same effect on all waves of both grids, model (60), and pre-weights by splines."""
        h = None if self.weights is None else ops.refine(self.weights, tuple(shape)).clamp_min(0)
        if h is not None:
            h = h / h.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
        return InitialConditions(resize_momentum(self.momentum, tuple(shape)), h)


class Coordinates(Protocol):
    """The vector x (k,) that an optimizer searches in.

    Attributes:
        free_weights: whether x holds the pre-weights too.
    """

    @property
    def free_weights(self) -> bool: ...

    def pack(self, ic: InitialConditions) -> Tensor:
        """The vector of ``ic``, whose pre-weights are those that the coordinates were made with."""
        ...

    def unpack(self, x: Tensor) -> InitialConditions:
        """The complete initial conditions at x, with what does not vary."""
        ...

    def first_step(self, direction: Tensor) -> float:
        """Length of a first step along ``direction`` that moves the fastest point by a small distance."""
        ...


class State(Protocol):
    """A geodesic at one time t in [0, 1]. ``energy``: (b,) <m, v>."""

    @property
    def t(self) -> float: ...

    @property
    def energy(self) -> Tensor: ...


class Dynamics(Protocol):
    """From initial conditions to a map. ``source``: the shape that moves, of the kind ``moves``.

    Attributes:
        moves: Image or Measure. The map of images pulls the source back, phi: target -> source; that of measures pushes it forward.
        has_cells: whether the map is sampled on a grid, whose cells can fold (Problem's barrier).
        has_preweights: whether ``InitialConditions.weights`` are used.
        conserves_energy: whether <m, v> is the same at all times.
    """

    @property
    def moves(self) -> type[Image] | type[Measure]: ...

    @property
    def has_cells(self) -> bool: ...

    @property
    def has_preweights(self) -> bool: ...

    @property
    def conserves_energy(self) -> bool: ...

    @property
    def smoother(self) -> MultiGaussian: ...

    def shoot(self, ic: InitialConditions, source: Any) -> Transform:
        """The map at t = 1."""
        ...

    def flow(self, ic: InitialConditions, source: Any) -> tuple[Transform, Transform]:
        """The map at t = 1 and its inverse."""
        ...

    def energy(self, ic: InitialConditions, source: Any) -> Tensor:
        """(b,) <m0, v0>."""
        ...

    def geodesic(self, ic: InitialConditions, source: Any, times: Sequence[float]) -> Sequence[State]:
        """The geodesic at increasing ``times`` in [0, 1]."""
        ...

    def complete(self, ic: InitialConditions, source: Any) -> InitialConditions:
        """``ic`` with all that the dynamics needs: defaults are filled in.

        Raises:
            ConfigError: ``ic`` holds what the dynamics cannot use.
        """
        ...

    def preconditioner(self, ic: InitialConditions) -> MultiGaussian:
        """A smoother of constant weights near the metric of ``ic``, of the Gaussians in use. The search is preconditioned by it."""
        ...

    def coordinates(self, ic: InitialConditions, source: Any, free_weights: bool, preconditioner: MultiGaussian) -> Coordinates:
        """The search space around ``ic``.

        Args:
            free_weights: whether pre-weights are searched for, where there are any; False: they stay as in ``ic``.
            preconditioner: that of the start of the search.
        """
        ...

    def shooting_fraction(self, fixed: Any, voxel_of_sigma: float, preconditioner: MultiGaussian) -> float:
        """Resolution of the shooting grid over that of the fixed shape, at most 1.

        Args:
            voxel_of_sigma: voxel of the shooting grid over the narrowest sigma in use.
            preconditioner: that of the start of the search.
        """
        ...

    def resized(self, ic: InitialConditions, fixed: Any, fraction: float) -> InitialConditions:
        """``ic`` as the start of a search at ``fraction`` of the resolution of the fixed shape."""
        ...

    def weight_penalty(self, penalty: Penalty, ic: InitialConditions, source: Any, step: int) -> Tensor:
        """(b,) Reg(h(0)) at an iteration or epoch; 0 where there are no pre-weights."""
        ...

    def initial_sigma(self, ic: InitialConditions, source: Any) -> Tensor | None:
        """sigma(x) at t = 0, (b, 1, *s) in millimeters on the shooting grid; None where there are no pre-weights."""
        ...


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A geodesic of images at one time, on the shooting grid.

    Args:
        momentum, velocity, displacement: (b, d, *s); the map is id + displacement.
        weights: w (b, n, *s) of a metric that differs by region, or None.
        sigmas: of the n Gaussians, in domain units; needed where there are weights.
    """

    t: float
    grid: Grid
    momentum: Tensor
    velocity: Tensor
    displacement: Tensor
    weights: Tensor | None = None
    sigmas: Sequence[float] = ()

    __repr__ = repr_with_shapes

    @property
    def energy(self) -> Tensor:
        """(b,) <m, v>."""
        return ops.inner(self.momentum, self.velocity, self.grid)

    def sigma(self, shape: Sequence[int] | None = None) -> Tensor | None:
        """sigma(x), (b, 1, *s) in millimeters, of the weights resampled to ``shape``; None where there are no weights."""
        if self.weights is None:
            return None
        w = self.weights if shape is None else ops.resize(self.weights, tuple(shape))
        return local_sigma(w, self.sigmas) * self.grid.length


def energy_drift(states: Sequence[State]) -> float:
    """Largest relative change of <m, v> since the first state: 0 on a geodesic, model (15). The first pair of a batch."""
    energies = [float(state.energy[0]) for state in states]
    return max(abs(e / energies[0] - 1) for e in energies) if energies[0] > 0 else 0.0


def require_carrier(dynamics: Dynamics, shape: Image | Measure) -> None:
    """Raises ConfigError where ``dynamics`` does not move shapes of this kind."""
    if not isinstance(shape, dynamics.moves):
        what, which = ("shapes", "points") if isinstance(shape, Measure) else ("images", "svf, lddmm or rdmm")
        raise ConfigError(f"{what} are registered by dynamics={which}, not by {type(dynamics).__name__}")
