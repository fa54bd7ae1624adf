"""A finished registration of shapes: its maps, metrics, figures and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from rdmm import metrics
from rdmm.config.build import build
from rdmm.data.inputs import ShapeInputs
from rdmm.dynamics.base import energy_drift
from rdmm.dynamics.points import PointSnapshot
from rdmm.registration.base import FinishedRegistration
from rdmm.registration.outputs import SHAPE_FILES, OutputFile
from rdmm.registration.verdict import Verdict, judge_shapes
from rdmm.similarity import SinkhornDivergence
from rdmm.spatial.grid import Grid
from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Affine, Identity, Transform, composed, flat
from rdmm.stages.gradient_flow import ParticleFlow
from rdmm.types import Tensor

if TYPE_CHECKING:
    from rdmm.report.shape_figures import ShapeResult

PATH_TIMES = tuple(k / 10 for k in range(11))
"""Times t of the control points' paths."""


@dataclass(frozen=True, eq=False, repr=False)
class ShapeRegistration(FinishedRegistration):
    """A finished registration of shapes.

    ``result.transform`` moves the points of the moving shape to the fixed shape, in domain units of ``frame``.
    """

    inputs: ShapeInputs
    times: ClassVar[Sequence[float]] = PATH_TIMES
    frames_are_points: ClassVar[bool] = True

    @property
    def pair(self) -> Pair[Measure]:
        """The registered shapes, in domain units of ``frame``."""
        return self.inputs.pair

    @property
    def frame(self) -> Grid:
        """A grid around both shapes."""
        return self.inputs.frame

    @cached_property
    def warped(self) -> Measure:
        """The moving shape, moved to the fixed one, in domain units."""
        return self.pair.moving.moved_by(self.result.transform)

    def in_world(self, measure: Measure) -> np.ndarray:
        """Vertices (n, d) of a measure in world millimeters."""
        return self.frame.to_world(measure.points.detach())[0].numpy().T

    @cached_property
    def energy_drift(self) -> float:
        """Largest relative change of the Hamiltonian over t in [0, 1]; NaN without a geodesic."""
        return energy_drift(self.snapshots) if self.snapshots else float("nan")

    @cached_property
    def snapshots(self) -> list[PointSnapshot]:
        """Snapshots of the control points at PATH_TIMES; [] if there is no geodesic."""
        ic, dynamics = self.result.ic, self.dynamics
        if ic is None or dynamics is None:
            return []
        with torch.no_grad():
            return list(dynamics.geodesic(ic, self.pair.moving, PATH_TIMES))  # type: ignore[arg-type]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Distances between the shapes before and after, inverse consistency, energy drift, landmark errors. Lengths are in mm."""
        out = {**self._distances("before", self.pair.moving), **self._distances("after", self.warped)}
        returned = self.warped.moved_by(self.result.inverse).points - self.pair.moving.points
        out["inverse_consistency_mm"] = float(returned.norm(dim=1).mean()) * self.frame.length
        if np.isfinite(self.energy_drift):
            out["energy_drift"] = self.energy_drift
        if self.inputs.landmarks is not None:
            fixed, moving = self.inputs.landmarks
            moved = self.frame.to_world(self.result.transform(self.inputs.to_domain(moving)))[0].numpy().T
            out["tre_before_mm"] = float(metrics.tre(moving, fixed).mean())
            out["tre_mm"] = float(metrics.tre(moved, fixed).mean())
        return out

    def _distances(self, name: str, moving: Measure) -> dict[str, float]:
        """Mean and 95th percentile of the distances (mm) from the vertices of each shape to the nearest vertex of the other, and the mean
        distance of the features of these two, if there are features."""
        from scipy.spatial import cKDTree

        a, b = self.in_world(self.pair.fixed), self.in_world(moving)
        (to_fixed, of_moving), (to_moving, of_fixed) = cKDTree(a).query(b), cKDTree(b).query(a)
        out = {
            f"distance_{name}_mm": float(np.mean(to_fixed) + np.mean(to_moving)) / 2,
            f"hd95_{name}_mm": float(max(np.percentile(to_fixed, 95), np.percentile(to_moving, 95))),
        }
        if self.pair.fixed.features is not None and moving.features is not None:
            f, g = self.pair.fixed.features[0], moving.features[0]
            apart = [(f[:, of_moving] - g).norm(dim=0).mean(), (f - g[:, of_fixed]).norm(dim=0).mean()]
            out[f"feature_distance_{name}"] = float(sum(apart)) / 2
        return out

    @cached_property
    def fixed_warped_back(self) -> Measure:
        """The fixed shape, moved to the moving one, in domain units."""
        return self.pair.fixed.moved_by(self.result.inverse)

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the result can be trusted: judge_shapes."""
        return judge_shapes(self)

    def compute(self) -> None:
        for name in ("warped", "fixed_warped_back", "metrics", "verdict"):
            getattr(self, name)

    def files(self) -> Sequence[OutputFile]:
        return SHAPE_FILES

    @cached_property
    def _affine_and_flow(self) -> tuple[Affine | None, Transform]:
        """Split the total map into its leading affine maps, as one, and the rest."""
        maps = flat(self.result.transform)
        affine: Affine | None = None
        while maps and isinstance(maps[0], Affine):
            affine = maps[0] if affine is None else Affine(maps[0].matrix @ affine.matrix)
            maps = maps[1:]
        flow: Transform = Identity()
        for m in maps:
            flow = composed(flow, m)
        return affine, flow

    @property
    def affine_part(self) -> Affine | None:
        """The affine part, applied to the moving shape before ``flow``, in domain units of the frame; None if there is none."""
        return self._affine_and_flow[0]

    @property
    def affine(self) -> np.ndarray:
        """The inverse of the affine part, fixed -> moving as in its file: (d+1, d+1) of world millimeters; the identity without one."""
        return np.eye(self.frame.ndim + 1) if self.affine_part is None else self.affine_part.inverse().in_world(self.frame)

    @property
    def flow(self) -> Transform:
        """The deformation, applied to the moving shape after ``affine_part``, in domain units of the frame."""
        return self._affine_and_flow[1]

    @property
    def is_deformed(self) -> bool:
        return not isinstance(self.flow, Identity)

    @property
    def inverse_flow(self) -> Transform:
        """The inverse of ``flow``: from the fixed shape to the moving shape after ``affine_part``."""
        return self.result.inverse if self.affine_part is None else composed(self.result.inverse, self.affine_part)

    @property
    def control_paths(self) -> list[np.ndarray]:
        """The control points (n, d) at PATH_TIMES, world millimeters."""
        return [self.frame.to_world(snapshot.points)[0].numpy().T for snapshot in self.snapshots]

    @cached_property
    def goals(self) -> Tensor | None:
        """Where the plan of the similarity sends each atom of the warped shape, (1, d, n) in domain units; None unless it is transport."""
        similarity = build(self.config["similarity"], "similarity") if "similarity" in self.config else None
        return similarity.goals(self.warped, self.pair.fixed) if isinstance(similarity, SinkhornDivergence) else None

    def _shape_result(self) -> ShapeResult:
        """What figures show. The plan is drawn in the plane only."""
        from rdmm.report.shape_figures import ShapeResult

        paths = [(t, self.flow.at(t)) for t in self.flow.times] if isinstance(self.flow, ParticleFlow) else []
        return ShapeResult(self.warped, self.flow, self.goals if self.frame.ndim == 2 and not paths else None, paths)

    @cached_property
    def picture(self) -> str:
        """Both shapes before and after, in each plane, with the deformed grid: base64 PNG."""
        from rdmm.report.figures import base64_png

        return base64_png(self.figure_by_method({"warped": self}))

    def figures(self) -> list[tuple[str, str]]:
        """(heading, base64 PNG) of every figure of the report."""
        return [("Shapes before and after", self.picture)]

    def frames(self) -> list[dict[str, Any]]:
        """The moving control points over the fixed shape, as data for the page's script; [] without a geodesic."""
        from rdmm.report.shape_figures import shape_frames

        if not self.snapshots:
            return []
        steps = ((snapshot.t, snapshot.points) for snapshot in self.snapshots)
        return shape_frames(self.pair.fixed, steps, self.frame)

    def plot(self) -> Any:
        """A matplotlib figure of both shapes, before and after, with the deformed grid."""
        from rdmm.report.interactive import on_screen
        from rdmm.report.shape_figures import shapes_by_method

        results = {"warped": self._shape_result()}
        return on_screen(lambda make: shapes_by_method(self.pair.fixed, self.pair.moving, results, self.frame, make))

    def thumbnail(self) -> str:
        """A small base64 JPEG of the shapes before and after, in the first plane."""
        from rdmm.report.shape_figures import shape_thumbnail

        return shape_thumbnail(self.picture, self.frame.ndim)

    @staticmethod
    def figure_by_method(done: Mapping[str, ShapeRegistration]) -> Any:
        """A matplotlib figure of one pair and its registrations by several methods (name -> registration)."""
        from rdmm.report.shape_figures import shapes_by_method

        shapes = next(iter(done.values())).inputs
        results = {name: r._shape_result() for name, r in done.items()}
        return shapes_by_method(shapes.pair.fixed, shapes.pair.moving, results, shapes.frame)
