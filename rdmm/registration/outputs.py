"""The table of files that a registration writes. Each row gives the name, the function that writes it, and when it is written.

To add a file, add one row here and one line to the table in the README. Files are written in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdmm import io
from rdmm.data.given import MAX_IMAGES
from rdmm.registration.record import write_conditions
from rdmm.spatial import ops
from rdmm.spatial.transform import Framed, displacement
from rdmm.types import ConfigError, Tensor


@dataclass(frozen=True)
class Output:
    """Which optional files are written.

    Args:
        times: increasing times in [0, 1]. The files of ``snapshot_files`` are written for each.
        composite: also write the total map (deformation and affine) as one warp, and its inverse.
        refined: also shoot the last deformable stage again with voxels and steps of half the size, and measure that: ``refined_...`` in
            run.json. It takes as long as 8 (3D: 16) evaluations of the objective.
    """

    times: Sequence[float] = ()
    composite: bool = False
    refined: bool = False

    def __post_init__(self) -> None:
        if any(not 0 <= t <= 1 for t in self.times) or any(b <= a for a, b in zip(self.times, self.times[1:], strict=False)):
            raise ConfigError(f"output.times must be increasing numbers in [0, 1], e.g. [0,0.5,1]; got {list(self.times)}")


@dataclass(frozen=True)
class OutputFile:
    """One row of the table.

    Args:
        name: file name, without the prefix.
        write: writes the file; called with (finished registration, path).
        when: called with the finished registration; tells whether it has this file. None: it always has.
    """

    name: str
    write: Callable[[Any, Path], None]
    when: Callable[[Any], bool] | None = None


def _write_image(image: Callable[[Any], Any]) -> Callable[[Any, Path], None]:
    """A function that writes an image."""
    return lambda r, path: image(r).save(path, overwrite=True)


def _write_fixed(data: Callable[[Any], Tensor]) -> Callable[[Any, Path], None]:
    """A function that writes data on the fixed grid."""
    return lambda r, path: io.write_image(path, data(r), r.grid, like=r.stored[0])


def _write_warp(u: Callable[[Any], Tensor]) -> Callable[[Any, Path], None]:
    """A function that writes a displacement on the fixed grid."""
    return lambda r, path: io.write_warp(path, u(r), r.grid, like=r.stored[0])


def _total_displacement(r: Any, transform: Any) -> Tensor:
    """A transform between world millimeters as a displacement (1, d, *s) on the fixed grid, in domain units."""
    return displacement(Framed(transform, r.grid), r.grid, r.deformation)


def _further_file(k: int) -> OutputFile:
    """The k-th image of the moving subject on the fixed grid."""
    return OutputFile(f"Warped_{k}.nii.gz", _write_image(lambda r: r.further_warped[k - 2]), when=lambda r: len(r.further_warped) > k - 2)


def _has_matrix(r: Any) -> bool:
    """Whether a matrix is written: where there is an affine part, and where there is no warp, so that every run has a transform."""
    return r.affine_part is not None or not r.is_deformed


CONDITIONS = OutputFile(
    "initial_conditions.safetensors", lambda r, path: write_conditions(path, r.result.ic), when=lambda r: r.result.ic is not None
)


def image_files(output: Output, gaussians: int) -> list[OutputFile]:
    """The files of a registration of images.

    Args:
        gaussians: number of Gaussians whose weights may be written (t*_Weight*.nii.gz).
    """
    return [
        OutputFile("0GenericAffine.mat", lambda r, path: io.write_affine(path, r.affine), when=_has_matrix),
        OutputFile("1Warp.nii.gz", _write_warp(lambda r: r.deformation), when=lambda r: r.is_deformed),
        OutputFile("1InverseWarp.nii.gz", _write_warp(lambda r: r.inverse_deformation), when=lambda r: r.is_deformed),
        OutputFile("Warped.nii.gz", _write_image(lambda r: r.warped)),
        OutputFile("InverseWarped.nii.gz", _write_image(lambda r: r.inverse_warped)),
        OutputFile("WarpedLabels.nii.gz", _write_image(lambda r: r.warped_labels), when=lambda r: r.warped_labels is not None),
        *(_further_file(k) for k in range(2, MAX_IMAGES + 1)),
        OutputFile("CompositeWarp.nii.gz", _write_warp(lambda r: _total_displacement(r, r.transform)), when=lambda r: r.output.composite),
        OutputFile(
            "InverseCompositeWarp.nii.gz", _write_warp(lambda r: _total_displacement(r, r.inverse)), when=lambda r: r.output.composite
        ),
        OutputFile("Sigma0.nii.gz", _write_fixed(lambda r: r.sigmas()[0]), when=lambda r: r.sigmas() is not None),
        OutputFile("Sigma1.nii.gz", _write_fixed(lambda r: r.sigmas()[1]), when=lambda r: r.sigmas() is not None),
        *(file for k, t in enumerate(output.times) for file in snapshot_files(k, t, gaussians)),
        CONDITIONS,
    ]


def snapshot_files(k: int, t: float, gaussians: int) -> list[OutputFile]:
    """The files of the geodesic at time t, which is ``output.times[k]``: map, warped image, log det J, velocity and momentum;
    for RDMM also sigma(x) and the weights.

    Velocity and momentum are written in the format of displacements: millimeters along L, P, S. The velocity is per unit of time.
    The momentum is a density in domain units, multiplied by the longest edge.
    """

    def at(r: Any) -> Any:
        return r.output_snapshots[k]

    def resized(r: Any, field: str) -> Tensor:
        return ops.resize(getattr(at(r), field), r.grid.shape)

    def refined(r: Any) -> Tensor:
        """The displacement on the image's grid, as that of the result (``Dense.refined``)."""
        return ops.refine(at(r).displacement, r.grid.shape)

    def log_jacobian(r: Any) -> Tensor:
        return ops.jacobian_determinant(refined(r), r.grid).clamp_min(1e-3).log()[None]

    def exists(r: Any) -> bool:
        return bool(r.output_snapshots)

    def has_weight(r: Any, i: int) -> bool:
        return exists(r) and at(r).weights is not None and at(r).weights.shape[1] > i

    def weight(i: int) -> OutputFile:
        return OutputFile(
            f"t{t:g}_Weight{i + 1}.nii.gz", _write_fixed(lambda r: resized(r, "weights")[:, i : i + 1]), when=lambda r: has_weight(r, i)
        )

    return [
        OutputFile(f"t{t:g}_1Warp.nii.gz", _write_warp(refined), when=exists),
        OutputFile(f"t{t:g}_Warped.nii.gz", _write_fixed(lambda r: r.warped_at(at(r)).data), when=exists),
        OutputFile(f"t{t:g}_LogJacobian.nii.gz", _write_fixed(log_jacobian), when=exists),
        OutputFile(f"t{t:g}_Velocity.nii.gz", _write_warp(lambda r: resized(r, "velocity")), when=exists),
        OutputFile(f"t{t:g}_Momentum.nii.gz", _write_warp(lambda r: resized(r, "momentum")), when=exists),
        OutputFile(f"t{t:g}_Sigma.nii.gz", _write_fixed(lambda r: at(r).sigma(r.grid.shape)), when=lambda r: has_weight(r, 0)),
        *(weight(i) for i in range(gaussians)),
    ]


def _write_shape(path: Path, start: np.ndarray, end: np.ndarray, shape: Any) -> None:
    """Write a moved shape, with the displacement (and the weight, if any) of each vertex."""
    cells = None if shape.cells is None else shape.cells.numpy()
    data = {"displacement": end - start} | ({} if shape.weights is None else {"weights": shape.weights[0].numpy()})
    io.write_mesh(path, end, cells, data)


def _write_flow(r: Any, path: Path) -> None:
    """Write the paths of the control points as lines."""
    steps = r.control_paths
    t, n = len(steps), len(steps[0])
    index = np.arange(n * t).reshape(t, n)
    cells = np.stack([index[:-1].ravel(), index[1:].ravel()], 1)
    io.write_mesh(path, np.concatenate(steps), cells, {"t": np.repeat(r.times, n)})


def _write_frame_warp(transform: Callable[[Any], Any]) -> Callable[[Any, Path], None]:
    """A function that writes a transform as a displacement on the grid around both shapes."""
    return lambda r, path: io.write_warp(path, displacement(transform(r), r.frame, torch.zeros(1)), r.frame)


SHAPE_FILES = (
    OutputFile("Warped.vtk", lambda r, path: _write_shape(path, r.in_world(r.pair.moving), r.in_world(r.warped), r.pair.moving)),
    OutputFile(
        "InverseWarped.vtk",
        lambda r, path: _write_shape(path, r.in_world(r.pair.fixed), r.in_world(r.fixed_warped_back), r.pair.fixed),
    ),
    OutputFile(
        "0GenericAffine.mat",
        lambda r, path: io.write_affine(path, r.affine),
        when=_has_matrix,
    ),
    OutputFile("1Warp.nii.gz", _write_frame_warp(lambda r: r.inverse_flow), when=lambda r: r.is_deformed),
    OutputFile("1InverseWarp.nii.gz", _write_frame_warp(lambda r: r.flow), when=lambda r: r.is_deformed),
    OutputFile("Flow.vtk", _write_flow, when=lambda r: r.result.ic is not None),
    CONDITIONS,
)
"""The files of a registration of shapes. As for images, warps map points of the fixed shape to the moving one."""
