"""The multi-Gaussian smoother."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from rdmm.regularizer.weights import region_rows
from rdmm.spatial.gaussian import Boundary, Filter, Gain, filtered, spectral_filter
from rdmm.spatial.grid import Grid
from rdmm.types import ConfigError, Tensor

Unit = Literal["domain", "mm"]

DELTA = 1e-3
"""delta of the preconditioner, model (27), relative to the largest symbol."""

LEAST_SHARE = 0.15
"""Gaussians below this share of the largest weight do not set the voxel of the shooting grid."""


def check_length(name: str, value: float, unit_name: str, unit: Unit) -> None:
    """Raise ConfigError for a length that is negative, wider than the image, or in an unknown unit."""
    if unit not in get_args(Unit):
        raise ConfigError(f"{unit_name} must be one of {', '.join(get_args(Unit))}, not {unit!r}")
    if value < 0:
        raise ConfigError(f"{name} must be >= 0, not {value}")
    if unit == "domain" and value > 1:
        raise ConfigError(
            f"{name} is in units of the image's longest edge, and {value} is wider than the image; for millimeters set {unit_name}=mm"
        )


def to_domain(value: float, unit: Unit, grid: Grid) -> float:
    """A length in domain units of ``grid``."""
    return value / grid.length if unit == "mm" else value


@dataclass(frozen=True)
class MultiGaussian:
    """K = sum_i w_i^2 K_{sigma_i}, and its region-specific form K(w) m = sum_i w_i K_{sigma_i} * (w_i m): model (8), model (7).

    Args:
        sigmas: standard deviations, from narrow to wide. Equal ones are Gaussians that regions do not share.
        weights: the papers' squared weights w_i^2 (of LDDMM: h_i^2), summing to 1.
        boundary: ``zero``, ``periodic``, ``reflect`` or ``slip``.
        unit: unit of the sigmas: ``domain`` or ``mm``.
        compressibility: gain of the part of each wave that compresses, over that of the part that does not, in [0, 1]. A velocity that
            changes volumes costs 1 / compressibility times the energy of one that does not; 0: the flow keeps every volume. Below 1
            with ``boundary="slip"`` only.
        regions: squared weights of labels, and of ``background`` (all other labels), one number per Gaussian; for pre-weights that a label
            map gives. Empty: no region has weights of its own.

    Raises:
        ConfigError: sigmas that are not positive or not in order, weights that are negative or do not sum to 1, or an unknown option.
    """

    sigmas: Sequence[float]
    weights: Sequence[float]
    boundary: Boundary = "zero"
    unit: Unit = "domain"
    compressibility: float = 1.0
    regions: Mapping[Any, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sigmas, weights = tuple(map(float, self.sigmas)), tuple(map(float, self.weights))
        if not sigmas or len(sigmas) != len(weights):
            raise ConfigError(f"smoother: {len(sigmas)} sigmas but {len(weights)} weights; give one weight per sigma")
        if not all(0 < s < math.inf for s in sigmas) or any(b < a for a, b in itertools.pairwise(sigmas)):
            raise ConfigError(f"smoother.sigmas must be positive and increasing, not {list(sigmas)}")
        if not all(w >= 0 for w in weights) or not abs(sum(weights) - 1) <= 0.01:
            raise ConfigError(f"smoother.weights (squared weights) must be >= 0 and sum to 1, not {list(weights)} (sum {sum(weights):.4g})")
        for name, value, known in (("boundary", self.boundary, get_args(Boundary)), ("unit", self.unit, get_args(Unit))):
            if value not in known:
                raise ConfigError(f"smoother.{name} must be one of {', '.join(known)}, not {value!r}")
        if not 0 <= self.compressibility <= 1:
            raise ConfigError(f"smoother.compressibility must be in [0, 1], not {self.compressibility}")
        if self.compressibility < 1 and self.boundary != "slip":
            raise ConfigError(
                f"smoother.compressibility={self.compressibility:g} needs smoother.boundary=slip, not {self.boundary}; or set it to 1"
            )
        object.__setattr__(self, "regions", region_rows(self.regions, len(sigmas), "smoother.regions"))
        object.__setattr__(self, "sigmas", sigmas)
        object.__setattr__(self, "weights", tuple(w / sum(weights) for w in weights))

    def scales(self, grid: Grid) -> tuple[float, ...]:
        """The sigmas in domain units of ``grid``."""
        return tuple(to_domain(s, self.unit, grid) for s in self.sigmas)

    def narrowest(self, grid: Grid) -> float:
        """The smallest sigma that matters, of a weight of at least LEAST_SHARE of the largest, in domain units."""
        least = LEAST_SHARE * max(self.weights)
        return next(s for s, w in zip(self.scales(grid), self.weights, strict=True) if w > least)

    def filter(self, grid: Grid, like: Tensor, gain: Gain = "filter", delta: float = 0.0) -> Filter:
        """K of constant weights, or a function of it, for fields of the dtype and device of ``like``."""
        used = [(s, w) for s, w in zip(self.scales(grid), self.weights, strict=True) if w > 0]
        sigmas, weights = zip(*used, strict=True)
        return spectral_filter(grid, like, sigmas, weights, self.boundary, compressibility=self.compressibility, gain=gain, delta=delta)

    def __call__(self, m: Tensor, grid: Grid) -> Tensor:
        """Velocity v = K * m with constant weights, model (8), by one filter for all Gaussians; m, v (b, d, *s)."""
        return filtered(m.unsqueeze(1), [self.filter(grid, m)]).squeeze(1)

    def each(self, x: Tensor, grid: Grid) -> Tensor:
        """K_{sigma_i} * x_i of fields x (b, n, d, *s). Each Gaussian uses only the waves that it passes."""
        scales, softness = self.scales(grid), self.compressibility
        wide = scales[-1] if self.boundary == "slip" else None  # all Gaussians in one box
        return filtered(x, [spectral_filter(grid, x, (s,), (1.0,), self.boundary, compressibility=softness, wide=wide) for s in scales])

    def parts(self, m: Tensor, w: Tensor, grid: Grid) -> Tensor:
        """nu_i = K_{sigma_i} * (w_i m), model (7), (b, n, d, *s); m (b, d, *s), weights w (b, n, *s)."""
        return self.each(w.unsqueeze(2) * m.unsqueeze(1), grid)

    def precondition(self, z: Tensor, grid: Grid, *, inverse: bool = False, delta: float = DELTA) -> Tensor:
        """m = K^{1/2} (K + delta)^{-1} z, delta relative to the largest symbol. With ``inverse``: its inverse, on
        the frequencies that K passes.

        Where the symbol of K is above delta this is K^{-1/2}, so that <m, K m> = |z|^2 and steps in z are steps in the
        metric, model (27). Frequencies that K suppresses are left out of m: they would not
        change the velocity, but would add noise to the transport of m.
        """
        within = self if self.boundary == "slip" else replace(self, boundary="reflect")
        return filtered(z.unsqueeze(1), [within.filter(grid, z, "inverse root" if inverse else "root", delta)]).squeeze(1)
