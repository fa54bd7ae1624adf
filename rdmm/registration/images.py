"""From files to files: what ``rdmm register`` and ``rdmm.register`` do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rdmm import metrics
from rdmm.data.inputs import Inputs
from rdmm.dynamics.base import Snapshot, energy_drift
from rdmm.registration.base import FinishedRegistration
from rdmm.registration.outputs import OutputFile, image_files
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Affine, Dense, Identity, Placed, Transform, composed, displacement, framed, invert, split
from rdmm.types import Tensor

if TYPE_CHECKING:
    from rdmm.report.figures import ImageResult

log = logging.getLogger(__name__)

ANIMATION_TIMES = tuple(k / 8 for k in range(9))
"""Times of the animation."""

MIN_WEIGHT_FILES = 16
"""Weights of at least so many Gaussians are looked for when files of an earlier run are removed."""


@dataclass(frozen=True, eq=False)
class Registration(FinishedRegistration):
    """A finished registration of images.

    Attributes:
        transform, inverse: fixed -> moving and back, between world millimetres (RAS+).
        warped: the moving image on the fixed grid.
        has_inverse: False where only the map itself is known (another tool's result).
    """

    inputs: Inputs
    has_inverse: bool = True

    @property
    def pair(self) -> Pair:
        return self.inputs.pair

    @property
    def grid(self) -> Grid:
        """The fixed grid."""
        return self.pair.fixed.grid

    @property
    def stored(self) -> tuple[Grid, Grid]:
        """The fixed and the moving grid in the order in which their files store voxels."""
        return self.inputs.stored or (self.grid, self.pair.moving.grid)

    @cached_property
    def _deformation_and_affine(self) -> tuple[Transform, Affine | None]:
        return split(composed(self.result.transform, self.pair.initial))

    @property
    def affine(self) -> Affine | None:
        """The affine map that points go through after the deformation, in domain units of the fixed grid; None where there is none."""
        return self._deformation_and_affine[1]

    @cached_property
    def deformation(self) -> Tensor:
        """Displacement (1, d, *s) of the deformation, fixed -> moving, on the fixed grid, in domain units; without ``affine``."""
        return displacement(self._deformation_and_affine[0], self.pair.fixed.grid, self.pair.fixed.data)

    @cached_property
    def inverse_deformation(self) -> Tensor:
        """Displacement (1, d, *s) of the inverse of ``deformation`` on the fixed grid, in domain units."""
        grid, initial = self.pair.fixed.grid, self.pair.initial
        if not isinstance(initial, Identity | Affine):
            inverse, residual = invert(self.deformation, grid)
            log.info("the inverse of the initial warp was found by iteration, residual %.2g voxels", residual)
            return inverse
        back = self.result.inverse if isinstance(initial, Identity) else composed(initial.inverse(), self.result.inverse)
        return displacement(back if self.affine is None else composed(self.affine, back), grid, self.pair.fixed.data)

    @property
    def transform(self) -> Transform:
        return Placed(composed(self.result.transform, self.pair.initial), self.pair.fixed.grid)

    @property
    def inverse(self) -> Transform:
        grid, affine = self.pair.fixed.grid, self.affine
        return Placed(composed(Identity() if affine is None else affine.inverse(), Dense(self.inverse_deformation, grid)), grid)

    @cached_property
    def warped(self) -> Image:
        return self.pair.moved_by(self.result.transform)

    @cached_property
    def warped_labels(self) -> Image | None:
        labels = self.inputs.moving_labels
        transform = composed(self.result.transform, self.pair.initial)
        return None if labels is None else labels.moved_by(transform, self.pair.fixed.grid, mode="nearest")

    def inverse_warped(self) -> Image:
        """The fixed image on the moving grid."""
        moving, fixed = self.pair.moving, self.pair.fixed
        x = moving.grid.to_world(moving.grid.identity(moving.data))
        points = fixed.grid.from_world(self.inverse(x))
        from rdmm.spatial.ops import sample

        return Image(sample(fixed.data, points, fixed.grid), moving.grid)

    def geodesic(self, times: Sequence[float]) -> list[Snapshot]:
        """The last deformable stage at ``times``, on its shooting grid; [] where there is none."""
        ic, dynamics = self.result.ic, self.dynamics
        if ic is None or dynamics is None:
            return []
        with torch.no_grad():
            return list(dynamics.geodesic(ic, self.pair.fixed, times))  # type: ignore[arg-type]

    @cached_property
    def animation_snapshots(self) -> list[Snapshot]:
        """The last deformable stage at TIMES."""
        return self.geodesic(ANIMATION_TIMES)

    @property
    def shooting_grid(self) -> Grid:
        """The shooting grid of the last deformable stage."""
        assert self.result.ic is not None
        return self.result.ic.grid(self.pair.fixed)

    @cached_property
    def output_snapshots(self) -> list[Snapshot]:
        """The last deformable stage at ``output.times``."""
        return self.geodesic(self.output.times) if self.output.times else []

    def warped_at(self, snapshot: Snapshot) -> Image:
        """The moving image on the fixed grid at a snapshot."""
        return self.pair.moving.moved_by(composed(Dense(snapshot.displacement, self.shooting_grid), self.result.before), self.grid)

    def animation_maps(self) -> Iterator[tuple[Snapshot, Transform]]:
        """The moments, and the maps fixed -> moving at them."""
        for moment in self.animation_snapshots:
            yield moment, composed(Dense(moment.displacement, self.shooting_grid), self.result.before)

    @cached_property
    def energy_drift(self) -> float:
        """Largest relative change of <m, v> over t in [0, 1]: 0 on a geodesic; NaN without one (SVF, affine)."""
        conserved = self.dynamics is not None and self.dynamics.conserves_energy
        return energy_drift(self.animation_snapshots) if conserved and self.animation_snapshots else float("nan")

    def sigmas(self) -> tuple[Tensor, Tensor] | None:
        """sigma(x) at t = 0 and t = 1 on the fixed grid, (1, 1, *s) in mm; None where it is the same everywhere."""
        start, end = (self.animation_snapshots[i].sigma() if self.animation_snapshots else None for i in (0, -1))
        if start is None or end is None:
            return None
        shape = self.pair.fixed.grid.shape
        return ops.resize(start, shape), ops.resize(end, shape)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Regularity of the deformation, and Dice and TRE (mm) before and after where labels and landmarks were given."""
        grid, u = self.pair.fixed.grid, self.deformation
        out: dict[str, Any] = metrics.regularity(u, grid)
        if self.has_inverse:
            out["inverse_consistency_mm"] = metrics.inverse_consistency(self.result.transform, self.result.inverse, grid)
        fixed_labels, moving_labels = self.inputs.fixed_labels, self.inputs.moving_labels
        if np.isfinite(self.energy_drift):
            out["energy_drift"] = self.energy_drift
        if fixed_labels is not None and moving_labels is not None:
            onto = fixed_labels.grid
            maps = (self.transform, Placed(self.pair.initial, grid))
            moved, before = (moving_labels.moved_by(framed(t, onto), onto, mode="nearest").data for t in maps)
            out |= metrics.overlap(moved, fixed_labels.data, before, onto.voxel, self.inputs.labels)
        landmarks = self.inputs.landmarks
        if landmarks is not None:
            for region, (fixed, moving) in {"": (landmarks.fixed, landmarks.moving), **landmarks.by_region()}.items():
                name = f"tre_{region}".rstrip("_")
                out[f"{name}_before_mm"] = float(metrics.tre(fixed, moving).mean())
                out[f"{name}_mm"] = float(metrics.tre(fixed, moving, self.transform).mean())
        return out | self._region_metrics(u)

    def _region_metrics(self, u: Tensor) -> dict[str, float]:
        """Dice of the moved region with the fixed one, and SDlogJ inside and outside of that, where both are known."""
        fixed, moving, grid = self.inputs.fixed_regions, self.pair.regions, self.pair.fixed.grid
        if fixed is None or moving is None:
            return {}
        transform = composed(self.result.transform, self.pair.initial)
        a, b = (x.moved_by(t, grid, mode="nearest").data.gt(0).float() for x, t in ((moving, transform), (fixed, Identity())))
        return {
            "region_dice": metrics.dice(a, b, [1])[1],
            "sd_log_jacobian_inside": metrics.sd_log_jacobian(u, grid, b),
            "sd_log_jacobian_outside": metrics.sd_log_jacobian(u, grid, 1 - b),
        }

    def files(self) -> list[OutputFile]:
        gaussians = 0 if self.dynamics is None else len(self.dynamics.smoother.sigmas)
        return image_files(self.output, max(MIN_WEIGHT_FILES, gaussians))

    def _image_result(self) -> ImageResult:
        from rdmm.report.figures import ImageResult

        return ImageResult(self.warped, self.deformation, self.sigmas())

    def figures(self) -> list[tuple[str, str]]:
        """(heading, base64 PNG) of every figure of the report."""
        from rdmm.report.figures import image_figures

        before = self.pair.moved_by(Identity())
        return image_figures(self.pair.fixed, before, self._image_result(), self.metrics, self.result.history)

    def frames(self) -> list[dict[str, Any]]:
        """The moving image and the grid on their way from t = 0 to t = 1: for the page's script. [] where there is no geodesic."""
        from rdmm.report.animation import image_frames

        if not self.animation_snapshots:
            return []
        steps = ((moment.t, moment.displacement, transform) for moment, transform in self.animation_maps())
        return image_frames(self.pair.fixed, self.pair.moving, steps, self.shooting_grid)

    def thumbnail(self) -> str:
        """Fixed, warped and their difference, a small base64 JPEG."""
        from rdmm.report.figures import image_thumbnail

        return image_thumbnail(self.pair.fixed, self.warped)

    @staticmethod
    def figure_by_method(done: Mapping[str, Registration]) -> Any:
        """A matplotlib figure of one pair and its registrations by several methods (name -> registration)."""
        from rdmm.report.figures import images_by_method

        pair = next(iter(done.values())).pair
        return images_by_method(pair.fixed, pair.moved_by(Identity()), {name: r._image_result() for name, r in done.items()})
