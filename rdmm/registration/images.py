"""A finished registration of images: its maps, metrics, figures and files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from rdmm import metrics
from rdmm.data.inputs import Inputs
from rdmm.dynamics.base import Snapshot, energy_drift
from rdmm.io.exchange import Given, Image, image_source
from rdmm.io.in_memory import point_array
from rdmm.io.vectors import world_vectors
from rdmm.mapping.images import apply
from rdmm.mapping.moved_points import map_points
from rdmm.registration.base import FinishedRegistration
from rdmm.registration.outputs import OutputFile, image_files
from rdmm.registration.refined import refined_metrics
from rdmm.registration.verdict import Verdict, judge_images
from rdmm.report.slices import ImageResult
from rdmm.spatial import image as spatial
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Affine, Dense, Identity, Placed, Transform, composed, displacement, framed, invert, split
from rdmm.types import Tensor

log = logging.getLogger(__name__)

ANIMATION_TIMES = tuple(k / 8 for k in range(9))
"""Times t of the animation."""

MIN_WEIGHT_FILES = 16
"""Files t*_Weight1 to t*_Weight16 of an earlier run are removed, even if this run's smoother has fewer Gaussians."""


GUIDING = "labels that guided the registration: no independent measure of it"


@dataclass(frozen=True, eq=False, repr=False)
class Registration(FinishedRegistration):
    """A finished registration of images.

    Attributes:
        inputs: the inputs that were registered.
        has_inverse: False if only the map itself is known, as for another tool's result.
    """

    inputs: Inputs
    has_inverse: bool = True

    @property
    def pair(self) -> Pair:
        """The registered images, before normalization of their intensities."""
        return self.inputs.pair

    @property
    def grid(self) -> Grid:
        """The fixed grid."""
        return self.pair.fixed.grid

    @property
    def stored(self) -> tuple[Grid, Grid]:
        """The fixed and the moving grid, with the voxel order of their files."""
        return self.inputs.stored or (self.grid, self.pair.moving.grid)

    @cached_property
    def _deformation_and_affine(self) -> tuple[Transform, Affine | None]:
        return split(composed(self.result.transform, self.pair.initial))

    @property
    def affine_part(self) -> Affine | None:
        """The affine part, applied to points after the deformation, in domain units of the fixed grid; None if there is none."""
        return self._deformation_and_affine[1]

    @property
    def is_deformed(self) -> bool:
        return not isinstance(self._deformation_and_affine[0], Identity)

    @cached_property
    def deformation(self) -> Tensor:
        """Displacement (1, d, *s) of the deformation, fixed -> moving, on the fixed grid, in domain units; without ``affine_part``."""
        return displacement(self._deformation_and_affine[0], self.pair.fixed.grid, self.pair.fixed.data)

    @cached_property
    def inverse_deformation(self) -> Tensor:
        """Displacement (1, d, *s) of the inverse of ``deformation`` on the fixed grid, in domain units."""
        grid, initial = self.pair.fixed.grid, self.pair.initial
        if not isinstance(initial, Identity | Affine):
            inverse, residual = invert(self.deformation, grid)
            log.info("the initial warp was inverted by iteration, residual %.2g voxels", residual)
            return inverse
        back = self.result.inverse if isinstance(initial, Identity) else composed(initial.inverse(), self.result.inverse)
        return displacement(back if self.affine_part is None else composed(self.affine_part, back), grid, self.pair.fixed.data)

    @property
    def transform(self) -> Transform:
        """Maps points of the fixed image to the moving image, in world millimeters (RAS+)."""
        return Placed(composed(self.result.transform, self.pair.initial), self.pair.fixed.grid)

    @property
    def inverse(self) -> Transform:
        """Maps points of the moving image to the fixed image, in world millimeters (RAS+)."""
        grid, affine = self.pair.fixed.grid, self.affine_part
        return Placed(composed(Identity() if affine is None else affine.inverse(), Dense(self.inverse_deformation, grid)), grid)

    @cached_property
    def moved(self) -> spatial.Image:
        """The moving image on the fixed grid, whose axes are in the order of R, A, S; 0 outside its field of view."""
        return self._moved_by(self.pair.total_map(self.result.transform))

    def _moved_by(self, transform: Transform) -> spatial.Image:
        return self.pair.moving.moved_by(transform, self.grid, mode="nearest" if self.inputs.by_labels else "linear", outside=0.0)

    @property
    def warped(self) -> Image:
        """The moving image on the fixed grid, with the axes of the fixed file or array; 0 outside its field of view. Of a label map that is
        registered by its labels, these labels."""
        labels = self.inputs.maps[1] if self.inputs.by_labels else None
        return self._as_stored(self.moved.data if labels is None else self._moved_labels(labels))

    @cached_property
    def further_warped(self) -> list[Image]:
        """The further images of the moving subject (``also``) on the fixed grid, with the axes of the fixed file or array."""
        total = self.pair.total_map(self.result.transform)
        frame = self.grid
        return [self._as_stored(c.moving.moved_by(total, frame, outside=0.0).data) for c in self.inputs.contrasts]

    @cached_property
    def warped_labels(self) -> Image | None:
        """The labels of the moving image on the fixed grid, with the axes of the fixed file or array; None without labels, or if ``warped``
        is these labels."""
        labels = self.inputs.moving_labels
        is_warped = self.inputs.by_labels and labels is self.inputs.maps[1]
        return None if labels is None or is_warped else self._as_stored(self._moved_labels(labels))

    def _moved_labels(self, labels: spatial.Image) -> Tensor:
        return labels.moved_by(composed(self.result.transform, self.pair.initial), self.grid, mode="nearest").data

    @cached_property
    def inverse_warped(self) -> Image:
        """The fixed image on the moving grid, with the axes of the moving file or array; 0 outside its field of view."""
        moving, fixed = self.pair.moving, self.pair.fixed
        x = moving.grid.to_world(moving.grid.identity(moving.data))
        points = fixed.grid.from_world(self.inverse(x))
        labels = self.inputs.maps[0] if self.inputs.by_labels else None
        source = fixed if labels is None else labels
        values = ops.sample(source.data, points, source.grid, mode="linear" if labels is None else "nearest")
        data = torch.where(fixed.grid.contains(points), values, 0)
        return Image(moving.grid.restored(data, self.stored[1]), self.stored[1])

    def _as_stored(self, data: Tensor) -> Image:
        """Data (1, c, *s) on the fixed grid, with the voxel order of the fixed file."""
        return Image(self.grid.restored(data, self.stored[0]), self.stored[0])

    def apply(self, image: Given, *, labels: bool = False, inverse: bool = False, **options: Any) -> Image:
        """Another image of the moving subject on the fixed grid, or with ``inverse`` one of the fixed subject on the moving grid.

        Args:
            image: an image as for ``rdmm.register``; an array has the voxels of the moving image (with ``inverse``: of the fixed one).
            labels: it is a label map: nearest neighbor, and the numbers stay exact.
            options: further arguments of ``rdmm.apply``, such as default_value or out.
        """
        onto, own = self.stored[::-1] if inverse else self.stored
        source = image_source(image, "image", like=own)
        return apply(source, self.inverse if inverse else self.transform, onto, labels=labels, **options)

    def points(self, points: Any, *, inverse: bool = False) -> np.ndarray:
        """Where points (n, d) of the fixed image lie in the moving image, or with ``inverse`` those of the moving one in the fixed one.

        Args:
            points: world millimeters (RAS+), a row for each point.

        Raises:
            InputError: they are of another shape, or not finite.
        """
        return map_points(point_array(points, self.grid.ndim, "points"), self.inverse if inverse else self.transform)

    @property
    def displacement_mm(self) -> np.ndarray:
        """T(x) - x of the whole map, affine part included, at the voxels of the fixed image: (*s, d) in world millimeters (RAS+)."""
        return world_vectors(self.transform, self.stored[0]).astype(np.float32)

    @property
    def affine(self) -> np.ndarray:
        """The affine part of the map, fixed -> moving, as a matrix (d+1, d+1) of world millimeters (RAS+); the identity without one."""
        return np.eye(self.grid.ndim + 1) if self.affine_part is None else self.affine_part.in_world(self.grid)

    def jacobian(self, *, log: bool = False, with_affine: bool = False) -> Image:
        """The Jacobian determinant of the map, by central differences: how much larger the moving image is at each voxel of the fixed one.

        Args:
            log: the logarithm; determinants below 0.001 are set to 0.001 first.
            with_affine: with the affine part; otherwise of the deformation alone, as ``rdmm jacobian``.
        """
        det = ops.jacobian_determinant(self.deformation, self.grid)[None]
        if with_affine:
            det = det * float(np.linalg.det(self.affine[:-1, :-1]))
        return self._as_stored(det.clamp_min(1e-3).log() if log else det)

    def geodesic(self, times: Sequence[float]) -> list[Snapshot]:
        """Snapshots of the last deformable stage at ``times``, on its shooting grid; [] if there is no geodesic."""
        ic, dynamics = self.result.ic, self.dynamics
        if ic is None or dynamics is None:
            return []
        with torch.no_grad():
            return list(dynamics.geodesic(ic, self.pair.fixed, times))  # type: ignore[arg-type]

    @cached_property
    def animation_snapshots(self) -> list[Snapshot]:
        """Snapshots of the geodesic at ANIMATION_TIMES."""
        return self.geodesic(ANIMATION_TIMES)

    @property
    def shooting_grid(self) -> Grid:
        """The shooting grid of the last deformable stage."""
        assert self.result.ic is not None
        return self.result.ic.grid(self.pair.fixed)

    @cached_property
    def output_snapshots(self) -> list[Snapshot]:
        """Snapshots of the geodesic at ``output.times``."""
        return self.geodesic(self.output.times) if self.output.times else []

    def map_at(self, snapshot: Snapshot) -> Transform:
        """The map fixed -> moving up to the time of a snapshot, in domain units: at t = 1 that of the result."""
        return composed(Dense(snapshot.displacement, self.shooting_grid).refined(self.pair.fixed.grid), self.result.before)

    def warped_at(self, snapshot: Snapshot) -> spatial.Image:
        """The moving image, deformed up to the time of a snapshot, on the fixed grid."""
        return self._moved_by(self.map_at(snapshot))

    def animation_maps(self) -> Iterator[tuple[Snapshot, Transform]]:
        """The snapshots of the animation, each with its map fixed -> moving."""
        for snapshot in self.animation_snapshots:
            yield snapshot, self.map_at(snapshot)

    @cached_property
    def energy_drift(self) -> float:
        """Largest relative change of <m, v> over t in [0, 1]. It is 0 on an exact geodesic, and NaN without one (SVF, affine)."""
        conserved = self.dynamics is not None and self.dynamics.conserves_energy
        return energy_drift(self.animation_snapshots) if conserved and self.animation_snapshots else float("nan")

    def sigmas(self) -> tuple[Tensor, Tensor] | None:
        """sigma(x) at t = 0 and t = 1 on the fixed grid, (1, 1, *s) in mm; None if it is constant in space."""
        if not self._has_sigma:
            return None
        start, end = (self.animation_snapshots[i].sigma(self.grid.shape) for i in (0, -1))
        return None if start is None or end is None else (start, end)

    @cached_property
    def _has_sigma(self) -> bool:
        """Whether the metric differs by region: then the geodesic begins with weights. The whole one need not be computed for that."""
        return any(snapshot.weights is not None for snapshot in self.geodesic(ANIMATION_TIMES[:1]))

    @cached_property
    def subject(self) -> metrics.Subject:
        """Where the subject is on the fixed grid: in the fixed mask, else the fixed labels, else the foreground of the fixed image."""
        given = {*self.inputs.files, *self.inputs.in_memory}
        only_leaves_out = "fixed_exclude" in given or self.inputs.reading.get("nan") == "mask"
        by_mask = "fixed_mask" in given or (self.pair.fixed.mask is not None and not only_leaves_out)
        labels = self.inputs.fixed_labels or self.inputs.maps[0]
        return metrics.find_subject(self.pair.fixed, labels, by_mask=by_mask)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Regularity of the deformation; Dice and TRE (mm), before and after, if labels and landmarks were given."""
        out = metrics.regularity(self.deformation, self.grid, self.subject)
        if self.has_inverse:
            out |= metrics.inverse_errors(self.result.transform, self.result.inverse, self.grid, self.subject)
        if np.isfinite(self.energy_drift):
            out["energy_drift"] = self.energy_drift
        out |= self._label_metrics() | self._landmark_metrics() | self._region_metrics() | self._map_errors()
        return out | refined_metrics(self.result, self.inputs, self.subject)

    def _label_metrics(self) -> dict[str, Any]:
        """Overlap of the labels before and after, on the grid of the fixed labels; {} without labels."""
        fixed, moving = self.inputs.fixed_labels, self.inputs.moving_labels
        if fixed is None or moving is None:
            return {}
        start = Placed(self.pair.initial, self.grid)
        after = moving.moved_by(framed(self.transform, fixed.grid), fixed.grid, mode="nearest")
        before = moving.moved_by(framed(start, fixed.grid), fixed.grid, mode="nearest")
        found: dict[str, Any] = metrics.overlap(after.data, fixed.data, before.data, fixed.grid.voxel, self.inputs.labels)
        return found | ({"dice_is_of": GUIDING} if self.labels_guide else {})

    @property
    def labels_guide(self) -> bool:
        """Whether the labels took part in the registration, so that their Dice is no independent measure of it."""
        weight = self.config.get("guide_weight", 0)
        return bool(weight) or (self.inputs.by_labels and self.inputs.moving_labels is self.inputs.maps[1])

    def _landmark_metrics(self) -> dict[str, float]:
        """Mean registration error (mm) of the landmarks, before and after, of all and of each named region; {} without landmarks."""
        landmarks = self.inputs.landmarks
        if landmarks is None:
            return {}
        out = {}
        for region, (fixed, moving) in {"": (landmarks.fixed, landmarks.moving), **landmarks.by_region()}.items():
            name = f"tre_{region}".rstrip("_")
            out[f"{name}_before_mm"] = float(metrics.tre(fixed, moving).mean())
            out[f"{name}_mm"] = float(metrics.tre(fixed, moving, self.transform).mean())
        return out

    def _region_metrics(self) -> dict[str, float]:
        """Dice of the moved and the fixed region, and SDlogJ inside and outside the fixed region; {} unless both regions were given."""
        if self.inputs.fixed_regions is None or self.pair.regions is None:
            return {}
        transform = composed(self.result.transform, self.pair.initial)
        moved = self.pair.regions.moved_by(transform, self.grid, mode="nearest").data.gt(0).float()
        fixed = self.inputs.fixed_regions.moved_by(Identity(), self.grid, mode="nearest").data.gt(0).float()
        return {
            "region_dice": metrics.dice(moved, fixed, [1])[1],
            "sd_log_jacobian_inside": metrics.sd_log_jacobian(self.deformation, self.grid, fixed),
            "sd_log_jacobian_outside": metrics.sd_log_jacobian(self.deformation, self.grid, 1 - fixed),
        }

    @cached_property
    def map_error(self) -> Tensor | None:
        """Distance between where the map and the true map take each voxel, (1, 1, *s) in mm; None where the true map is not known."""
        if self.inputs.truth is None:
            return None
        whole = displacement(self.pair.total_map(self.result.transform), self.grid, self.pair.fixed.data)
        return metrics.distance_mm(whole, self.inputs.truth.displacement, self.grid)

    def _map_errors(self) -> dict[str, float]:
        """Errors against the true map by region; {} where it is not known."""
        truth, error = self.inputs.truth, self.map_error
        if truth is None or error is None:
            return {}
        before = metrics.distance_mm(torch.zeros_like(truth.displacement), truth.displacement, self.grid)
        return metrics.map_errors(error, before, truth.regions, self.grid)

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the result can be trusted: judge_images."""
        return judge_images(self)

    def compute(self) -> None:
        for name in ("deformation", "inverse_deformation", "warped", "metrics", "verdict"):
            getattr(self, name)

    def files(self) -> list[OutputFile]:
        gaussians = 0 if self.dynamics is None else len(self.dynamics.smoother.sigmas)
        return image_files(self.output, max(MIN_WEIGHT_FILES, gaussians))

    def _image_result(self) -> ImageResult:
        return ImageResult(self.moved, self.deformation, self.sigmas())

    def figures(self) -> list[tuple[str, str]]:
        """(heading, base64 PNG) of every figure of the report."""
        from rdmm.report.images import image_figures

        before = self._moved_by(self.pair.initial)
        return image_figures(self.pair.fixed, before, self._image_result(), self.metrics, self.result.history)

    def frames(self) -> list[dict[str, Any]]:
        """The deforming moving image and grid from t = 0 to t = 1, as data for the page's script; [] without a geodesic."""
        from rdmm.report.animation import image_frames

        if not self.animation_snapshots:
            return []
        steps = ((snapshot.t, snapshot.displacement, transform) for snapshot, transform in self.animation_maps())
        return image_frames(self.pair.fixed, self.pair.moving, steps, self.shooting_grid)

    def plot(self) -> Any:
        """A matplotlib figure of the middle slices: fixed, moving, warped, difference and deformed grid."""
        from rdmm.report.interactive import plot_images

        return plot_images(self.pair.fixed, self._moved_by(self.pair.initial), self._image_result())

    def thumbnail(self) -> str:
        """A small base64 JPEG of the fixed image, the warped image and their difference."""
        from rdmm.report.images import image_thumbnail

        return image_thumbnail(self.pair.fixed, self.moved)

    @staticmethod
    def figure_by_method(done: Mapping[str, Registration]) -> Any:
        """A matplotlib figure of one pair and its registrations by several methods (name -> registration)."""
        from rdmm.report.figures import images_by_method

        first = next(iter(done.values()))
        return images_by_method(
            first.pair.fixed, first._moved_by(first.pair.initial), {name: r._image_result() for name, r in done.items()}
        )
