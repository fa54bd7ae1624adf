"""Regions with Gaussians of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdmm.regularizer.smoother import MultiGaussian, Unit
from rdmm.regularizer.weights import BACKGROUND, region_name
from rdmm.spatial.gaussian import Boundary
from rdmm.types import ConfigError, nearest

KEY = "smoother.regions"

LUNG = {1: {"sigmas": (0.04, 0.06, 0.08), "weights": (0.1, 0.4, 0.5)}, BACKGROUND: {"sigmas": (0.2,), "weights": (1.0,)}}
"""The regions of the RDMM paper: a lung in the body."""


@dataclass(frozen=True)
class Region:
    """A region's own sigmas, and its squared weights: of these, then of the shared Gaussians."""

    sigmas: Sequence[float]
    weights: Sequence[float]

    @classmethod
    def read(cls, name: int | str, node: Any, shared: int) -> Region:
        """The region ``name`` from its settings.

        Args:
            shared: number of shared Gaussians.

        Raises:
            ConfigError: an entry is unknown or missing, or the numbers of sigmas and weights differ.
        """
        example = f"{KEY}={{{name}: {{sigmas: [0.04, 0.08], weights: [0.5, 0.5]}}}}"
        if not isinstance(node, Mapping):
            raise ConfigError(f"{KEY}.{name} must have sigmas and weights, not {node!r}; e.g. {example}")
        for key in node:
            if key not in ("sigmas", "weights"):
                raise ConfigError(
                    f"{KEY}.{name}: unknown key {key!r}{nearest(str(key), ('sigmas', 'weights'))}; a region has sigmas and weights"
                )
        for key in ("sigmas", "weights"):
            if not all(isinstance(x, int | float) for x in _listed(node.get(key, []))):
                raise ConfigError(f"{KEY}.{name}.{key} must be a list of numbers, not {node[key]!r}; e.g. {example}")
        sigmas, weights = node.get("sigmas", []), node.get("weights", [])
        if len(weights) != len(sigmas) + shared:
            of_shared = f" and {shared} of smoother.shared" if shared else ""
            raise ConfigError(f"{KEY}.{name}: {len(weights)} weights for {len(sigmas)} sigmas{of_shared}; give one weight per Gaussian")
        return cls(sigmas, weights)


def _listed(value: Any) -> Sequence[Any]:
    """A list as it is; anything else as a list of what no number is."""
    return value if isinstance(value, list | tuple) else [None]


def regional(
    regions: Mapping[Any, Any] | None = None,
    shared: Sequence[float] = (),
    boundary: Boundary = "slip",
    unit: Unit = "domain",
    compressibility: float = 1.0,
) -> MultiGaussian:
    """A smoother in which each region has Gaussians of its own.

    The velocity v = sum_i w_i K_i * (w_i m), model (7), has one term for each Gaussian of each region, and w_i is 0 in the other regions.
    So the momentum of a region moves another one only through Gaussians that both have, and where transitions overlap. Regions without
    shared Gaussians slide along their border as far as a diffeomorphism can.

    Args:
        regions: for each label of the label map, and for ``background`` (all other labels): ``sigmas``, the region's own standard
            deviations, and ``weights``, the squared weights, which sum to 1: one for each of its sigmas, then one for each of ``shared``.
            A region of shared Gaussians only needs no ``sigmas``. None: LUNG.
        shared: standard deviations of Gaussians that all regions have: what these move, moves across borders.
        boundary, unit, compressibility: as of MultiGaussian.

    Raises:
        ConfigError: there is no background, a name or entry is unknown, or sigmas and weights do not fit together.
    """
    parts = {region_name(name, KEY): node for name, node in (LUNG if regions is None else regions).items()}
    read = {name: Region.read(name, node, len(shared)) for name, node in parts.items()}
    if BACKGROUND not in read:
        raise ConfigError(f"{KEY}: {BACKGROUND} is missing: give its sigmas and weights, too; all labels without an entry take them")
    own = [(sigma, name, i) for name, region in read.items() for i, sigma in enumerate(region.sigmas)]
    gaussians = sorted([*own, *((sigma, None, i) for i, sigma in enumerate(shared))], key=lambda gaussian: gaussian[0])
    rows = {name: [_weight(name, region, *gaussian[1:]) for gaussian in gaussians] for name, region in read.items()}
    return MultiGaussian([sigma for sigma, *_ in gaussians], rows[BACKGROUND], boundary, unit, compressibility, rows)


def _weight(name: int | str, region: Region, owner: int | str | None, i: int) -> float:
    """The weight in a region of the Gaussian i of ``owner``; None: of the shared ones."""
    if owner is None:
        return region.weights[len(region.sigmas) + i]
    return region.weights[i] if owner == name else 0.0
