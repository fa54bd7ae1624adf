"""The gradient flow of a similarity of measures: particles without a regularizer, model (57)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rdmm.optim.problem import Similarity
from rdmm.runtime.interrupt import stop
from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Pair
from rdmm.stages.base import Result
from rdmm.types import ConfigError, Tensor, repr_with_shapes, require_finite_fields

TEST_MASS = 1e-6
"""Mass of a test particle over the mean mass of a particle: enough for a gradient in float32, and too little to push the others."""

CORRECTIONS = 3
"""Fixed-point iterations of an Euler step back, x = y - dt v(x). Not measured."""

MAX_STEPS = 100_000


@dataclass(frozen=True, eq=False)
class Velocity:
    """-grad_i S / a_i of particles of ``weights`` (1, n), or of test particles among them."""

    similarity: Similarity
    weights: Tensor
    target: Measure

    def __call__(self, particles: Tensor, tests: Tensor | None = None) -> Tensor:
        """(1, d, n) of the particles; of test particles where there are some."""
        points, weights, first = particles, self.weights, 0
        if tests is not None:
            first = particles.shape[2]
            light = weights.new_full((1, tests.shape[2]), TEST_MASS * float(weights.mean()))
            points, weights = torch.cat([particles, tests], 2), torch.cat([weights, light], 1)
        with torch.enable_grad():
            x = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.similarity(Measure(x, weights), self.target).sum(), x)
        return (-gradient / weights.unsqueeze(1).clamp_min(1e-37))[:, :, first:]


@dataclass(frozen=True, eq=False)
class ParticleFlow:
    """The map of the flow. The particles have their paths; every other point moves as a particle without mass among them.

    Args:
        velocity: of points among the particles.
        paths: the particles (1, d, n) at each step, t = 0 first.
        step: time between them.
        is_inverse: whether points go from the last step to the first.
    """

    velocity: Velocity
    paths: Sequence[Tensor]
    step: float
    is_inverse: bool = False

    __repr__ = repr_with_shapes

    @property
    def ndim(self) -> int:
        return int(self.paths[0].shape[1])

    @property
    def times(self) -> list[float]:
        return [k * self.step for k in range(len(self.paths))]

    def at(self, t: float) -> Tensor:
        """The particles (1, d, n) at the step nearest to time t."""
        return self.paths[min(round(t / self.step), len(self.paths) - 1)]

    def __call__(self, x: Tensor) -> Tensor:
        start, end = self.paths[0], self.paths[-1]
        if self.is_inverse:
            start, end = end, start
        points = x.flatten(2).to(start)
        if torch.equal(points, start):
            return end.view(x.shape).to(x)
        for particles in self.paths[-2::-1] if self.is_inverse else self.paths[:-1]:
            points = self._back(particles, points) if self.is_inverse else points + self.step * self.velocity(particles, points)
        return points.view(x.shape).to(x)

    def _back(self, particles: Tensor, y: Tensor) -> Tensor:
        """x with x + dt v(x) = y, about."""
        x = y
        for _ in range(CORRECTIONS):
            x = y - self.step * self.velocity(particles, x)
        return x


@dataclass(frozen=True)
class GradientFlow:
    """Moves every point of the moving measure down the similarity's gradient: d_t x_i = -grad_i S / a_i, by Euler steps.

    The weights a_i are scaled so that the fixed measure has the mass 1.

    Args:
        similarity: of measures.
        duration: time of the flow. By balanced transport with p = 2, the way that is left shrinks like e^-t.
        step: length of an Euler step.
    """

    similarity: Similarity
    duration: float = 5.0
    step: float = 0.05

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if not self.step > 0:
            raise ConfigError(f"gradient_flow.step must be > 0, not {self.step}")
        if not 1 <= round(self.duration / self.step) <= MAX_STEPS:
            raise ConfigError(f"gradient_flow.duration must be 1 to {MAX_STEPS} steps of {self.step}, not {self.duration}")

    def check(self, pair: Pair) -> None:
        """Raise ConfigError for what does not consist of free particles."""
        if not isinstance(pair.fixed, Measure) or pair.moving.cells is not None:
            raise ConfigError("stages=gradient_flow moves points without cells; curves and surfaces deform by stages=single")
        for key, alone in (("cost", "points"), ("directions", "none")):
            if (given := getattr(self.similarity, key, alone)) != alone:
                raise ConfigError(f"stages=gradient_flow moves positions alone: use similarity.{key}={alone}, not {given}")

    def __call__(self, pair: Pair[Measure]) -> Result:
        begin = time.perf_counter()
        self.check(pair)
        source, target = (m.atoms() for m in (pair.source, pair.fixed))
        assert source.weights is not None and target.weights is not None
        mass = target.weights.sum()
        velocity = Velocity(self.similarity, source.weights / mass, replace(target, weights=target.weights / mass))
        paths = [source.points.detach()]
        for _ in range(round(self.duration / self.step)):
            if stop.is_set():
                break
            paths.append(paths[-1] + self.step * velocity(paths[-1]))
        with torch.no_grad():
            value = float(self.similarity(Measure(paths[-1], velocity.weights), velocity.target).sum())
        flow, back = (ParticleFlow(velocity, paths, self.step, inverse) for inverse in (False, True))
        return Result(flow, back, {"similarity": value, "total": value}, seconds={"gradient_flow": time.perf_counter() - begin})
