"""Where a search starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from rdmm.dynamics.base import InitialConditions
from rdmm.dynamics.points import controls, farthest_points
from rdmm.regularizer.smoother import MultiGaussian, Unit, check_length, to_domain
from rdmm.regularizer.weights import BACKGROUND, by_region, region_rows
from rdmm.similarity import SinkhornDivergence
from rdmm.spatial.gaussian import gaussian
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.spatial.ops import sample
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Transform
from rdmm.types import ConfigError, Tensor, option, require_finite_fields

log = logging.getLogger(__name__)


class Initializer(Protocol):
    """A pair to initial conditions on the fixed grid's frame."""

    def __call__(self, pair: Pair) -> InitialConditions: ...


def require_image(pair: Pair) -> None:
    """Raise ConfigError for shapes, which have no momentum field."""
    if not isinstance(pair.fixed, Image):
        raise ConfigError("shapes start from control points: use initializer=controls")


def no_momentum(pair: Pair[Image]) -> Tensor:
    """m0 = 0 on the fixed grid."""
    require_image(pair)
    b, d = pair.fixed.data.shape[0], pair.fixed.grid.ndim
    return pair.fixed.data.new_zeros(b, d, *pair.fixed.grid.shape)


@dataclass(frozen=True)
class Zero:
    """No momentum; the smoother's own weights everywhere."""

    def check(self, pair: Pair) -> None:
        """Raise ConfigError for shapes."""
        require_image(pair)

    def __call__(self, pair: Pair) -> InitialConditions:
        return InitialConditions(no_momentum(pair))


MEDIUM: dict[int | str, Sequence[float]] = {1: (0.6, 0.3, 0.1), BACKGROUND: (0.1, 0.3, 0.6)}
"""Squared pre-weights for the three Gaussians of ``smoother=medium``: label 1 may deform more locally than the rest."""


@dataclass(frozen=True)
class Regions:
    """No momentum; pre-weights from a label map of the moving image (``--regions``), resampled in the pre-aligned space.

    Args:
        weights: label -> squared pre-weights h^2, one per Gaussian, summing to 1; None: the regions of ``smoother``, or else MEDIUM.
        background: squared pre-weights of all other labels; None likewise.
        smoothing: sigma of a blur of the squared pre-weights, beside that of the dynamics' ``weight_sigma``. One of them is needed: a
            metric that jumps from voxel to voxel makes a rough momentum, which no solver integrates well. ``weight_sigma`` alone makes
            the transitions stiffer, as its squared weights sum to less than 1 there (docs/rdmm.md).
        smoothing_unit: unit of smoothing: ``domain`` or ``mm``.
        smoother: that of the dynamics.
    """

    weights: Mapping[Any, Sequence[float]] | None = None
    background: Sequence[float] | None = None
    smoothing: float = 0.0
    smoothing_unit: Unit = "domain"
    smoother: MultiGaussian | None = None

    def __post_init__(self) -> None:
        require_finite_fields(self)
        check_length("initializer.smoothing", self.smoothing, "initializer.smoothing_unit", self.smoothing_unit)
        if self.weights is not None and BACKGROUND in self.weights:
            raise ConfigError(f"initializer.weights: give the squared weights of {BACKGROUND} as initializer.background=[...]")
        self.rows()

    def rows(self) -> dict[int | str, list[float]]:
        """The squared pre-weights of each label and of ``background``.

        Raises:
            ConfigError: they do not sum to 1, or their numbers differ.
        """
        own = (self.smoother and self.smoother.regions) or MEDIUM
        background = own[BACKGROUND] if self.background is None else self.background
        table = {**(own if self.weights is None else self.weights), BACKGROUND: background}
        return region_rows(table, len(background), "initializer.weights")

    def check(self, pair: Pair) -> None:
        """Warn of labels without a region, and of regions without a label.

        Raises:
            ConfigError: the pair is of shapes, no regions were given, or no label of theirs has weights.
        """
        require_image(pair)
        labels = {int(x) for x in self._labels(pair).data.unique().tolist()} - {0}
        named = {name for name in self.rows() if isinstance(name, int)}
        if not named & labels:
            raise ConfigError(
                f"{option('regions', '')} has the labels {_listed(labels)}, and none of them has weights of its own: "
                f"initializer.weights or smoother.regions names {_listed(named)}"
            )
        if named - labels:
            log.warning("%s has no label %s, for which there are weights", option("regions", ""), _listed(named - labels))
        if labels - named:
            log.warning("labels %s of %s have no weights of their own: they are background", _listed(labels - named), option("regions", ""))

    def _labels(self, pair: Pair) -> Image:
        if pair.regions is None:
            raise ConfigError(f"initializer=regions needs a label map of the moving image: pass {option('regions', 'LABELS.nii.gz')}")
        return pair.regions

    def __call__(self, pair: Pair) -> InitialConditions:
        regions, grid, rows = self._labels(pair), pair.fixed.grid, self.rows()
        weights = {label: row for label, row in rows.items() if isinstance(label, int)}
        squares = by_region(regions.data, weights, rows[BACKGROUND]).to(pair.fixed.data)
        transform: Transform = pair.initial
        points = regions.locate(transform(grid.identity(pair.fixed.data)), grid)
        sigma = to_domain(self.smoothing, self.smoothing_unit, grid)
        squares = gaussian(sample(squares, points, regions.grid), sigma, grid).clamp_min(0)
        return InitialConditions(no_momentum(pair), (squares / squares.sum(1, keepdim=True).clamp_min(1e-12)).sqrt())


def _listed(labels: set[int]) -> str:
    """Labels in order, the first ten of many."""
    found = sorted(labels)
    return ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "") if found else "none"


@dataclass(frozen=True)
class Controls:
    """No momentum. The control points are ``count`` vertices of the pre-aligned moving shape, far from each other, or all of them."""

    count: int = 300

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"initializer.count must be at least 1, not {self.count}")

    def check(self, pair: Pair) -> None:
        """Raise ConfigError for images."""
        if not isinstance(pair.fixed, Measure):
            raise ConfigError("initializer=controls is for shapes (points, curves, surfaces); images start from zero or regions")

    def __call__(self, pair: Pair[Measure]) -> InitialConditions:
        self.check(pair)
        points = torch.stack([farthest_points(x, self.count) for x in pair.source.points.detach()])
        return InitialConditions(torch.zeros_like(points), None, points)


@dataclass(frozen=True)
class Transported:
    """The momenta that send control points where optimal transport does: p with (K + ridge) p = v, v the plan's displacement; model (45).

    Args:
        similarity: gives the transport plan, with ``cost="points"``. A wide blur makes a smooth v; a reach leaves out points without a
            partner.
        count: number of control points, chosen as by Controls.
        ridge: added to the diagonal of the kernel matrix, whose kernel has height 1: smaller momenta, which follow v less closely.
        smoother: the kernel, that of the dynamics.
    """

    similarity: SinkhornDivergence = field(default_factory=lambda: SinkhornDivergence(0.05))
    count: int = 300
    ridge: float = 0.1
    smoother: MultiGaussian = field(default_factory=lambda: MultiGaussian([0.05, 0.1, 0.2], [0.3, 0.3, 0.4]))

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if not self.ridge > 0:
            raise ConfigError(f"initializer.ridge must be > 0, not {self.ridge}")

    def check(self, pair: Pair) -> None:
        """Raise ConfigError for images."""
        Controls(self.count).check(pair)

    def __call__(self, pair: Pair[Measure]) -> InitialConditions:
        q = controls(Controls(self.count)(pair))
        v = self.similarity.displacement(q, pair.source, pair.fixed)
        square = (q.unsqueeze(3) - q.unsqueeze(2)).square().sum(1)
        kernel = zip(self.smoother.sigmas, self.smoother.weights, strict=True)
        k = torch.stack([w * torch.exp(-square / (2 * s**2)) for s, w in kernel]).sum(0)
        k = k + self.ridge * torch.eye(q.shape[2], dtype=q.dtype, device=q.device)
        return InitialConditions(torch.linalg.solve(k, v.transpose(1, 2)).transpose(1, 2).contiguous(), None, q)
