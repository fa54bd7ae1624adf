"""The files of a geodesic at chosen times: map, velocity, momentum, log det J, and RDMM's weights and sigma(x)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdmm import io
from rdmm.dynamics.base import Snapshot
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import ConfigError, Tensor


@dataclass(frozen=True)
class Output:
    """What is written besides the usual files.

    Args:
        times: in [0, 1], increasing; at each, the files of ``written``.
        composite: whether the whole map, deformation and affine, is written as one warp too, with its inverse.
    """

    times: Sequence[float] = ()
    composite: bool = False

    def __post_init__(self) -> None:
        if any(not 0 <= t <= 1 for t in self.times) or any(b <= a for a, b in zip(self.times, self.times[1:], strict=False)):
            raise ConfigError(f"output.times must increase within [0, 1], not {list(self.times)}")


MOST = 16
"""Gaussians whose files are looked for before a run, to be replaced; more are written all the same."""


def names(times: Sequence[float]) -> list[str]:
    """The files of ``written``, of up to MOST Gaussians."""
    kinds = ["1Warp", "Warped", "LogJacobian", "Velocity", "Momentum", "Sigma", *(f"Weight{i + 1}" for i in range(MOST))]
    return [f"{prefix(t)}{kind}.nii.gz" for t in times for kind in kinds]


def prefix(t: float) -> str:
    return f"t{t:g}_"


def written(
    moments: Sequence[Snapshot],
    grid: Grid,
    like: Grid,
    warped: Callable[[Snapshot], Image],
    path: Callable[[str], Path],
) -> Iterator[Path]:
    """Write the files of each moment; their paths.

    Vectors (velocity, momentum) are written as displacements are: millimetres along L, P, S. A velocity is per unit of time;
    a momentum is a density in domain units, times the longest edge.

    Args:
        grid: the fixed image's, on which all is written, in the order of ``like``.
        warped: the moving image at a moment.
    """

    def file(t: float, kind: str, writer: Callable[..., None], data: Tensor) -> Path:
        target = path(f"{prefix(t)}{kind}.nii.gz")
        writer(target, data, grid, like=like)
        return target

    for moment in moments:
        u, v, m = (ops.resize(x, grid.shape) for x in (moment.displacement, moment.velocity, moment.momentum))
        fields: dict[str, tuple[Any, Tensor]] = {
            "1Warp": (io.write_warp, u),
            "Warped": (io.write_image, warped(moment).data),
            "LogJacobian": (io.write_image, ops.jacobian_determinant(u, grid).clamp_min(1e-3).log()[None]),
            "Velocity": (io.write_warp, v),
            "Momentum": (io.write_warp, m),
        }
        sigma = moment.sigma(grid.shape)
        if sigma is not None and moment.weights is not None:
            w = ops.resize(moment.weights, grid.shape)
            fields["Sigma"] = (io.write_image, sigma)
            fields |= {f"Weight{i + 1}": (io.write_image, w[:, i : i + 1]) for i in range(w.shape[1])}
        for kind, (writer, data) in fields.items():
            yield file(moment.t, kind, writer, data)
