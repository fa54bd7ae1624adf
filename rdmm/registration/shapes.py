"""From shapes to shapes: what ``rdmm register A.vtk B.vtk`` does. Registration of images is in ``registration``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from rdmm import io, metrics
from rdmm.config.build import build
from rdmm.config.compose import compose
from rdmm.data.inputs import ShapeInputs, read_shapes
from rdmm.dynamics.base import energy_drift
from rdmm.dynamics.points import PointLDDMM
from rdmm.io.files import Outputs
from rdmm.kernels.available import set_threads
from rdmm.registration.images import overrides_of, staged
from rdmm.registration.record import described, write_conditions, write_run
from rdmm.runtime.interrupt import stop
from rdmm.runtime.resources import chosen_device
from rdmm.runtime.warnings import collect_warnings
from rdmm.spatial.grid import Grid
from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Correspondence, Pair
from rdmm.spatial.transform import Affine, Identity, Transform, composed, displacement, flat
from rdmm.stages.base import Chain, Result
from rdmm.stages.deform import Deform
from rdmm.types import Tensor

RESULTS = ("Warped.vtk", "InverseWarped.vtk", "1Warp.nii.gz", "1InverseWarp.nii.gz", "run.json", "report.html")


OPTIONAL = ("0GenericAffine.mat", "Flow.vtk", "initial_conditions.safetensors")


TIMES = tuple(k / 10 for k in range(11))


@dataclass(frozen=True, eq=False)
class ShapeRegistration:
    """A finished registration of shapes: ``result.transform`` pushes the moving shape forward, in domain units of the frame."""

    shapes: ShapeInputs
    result: Result
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    status: str = "done"

    @cached_property
    def warped(self) -> Measure:
        """The moving shape where the fixed one is, in domain units."""
        return self.shapes.pair.moving.moved_by(self.result.transform)

    def in_world(self, measure: Measure) -> np.ndarray:
        """Vertices (n, d) in millimetres."""
        return self.shapes.frame.to_world(measure.points.detach())[0].numpy().T

    @cached_property
    def energy_drift(self) -> float:
        """Largest relative change of the Hamiltonian over t in [0, 1]."""
        ic, dynamics = self.result.ic, _dynamics(self.settings["stages"])
        if ic is None or dynamics is None:
            return float("nan")
        with torch.no_grad():
            return energy_drift(dynamics.geodesic(ic, self.shapes.pair.moving, TIMES))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Distances (mm) of the vertices of each shape to the nearest one of the other, before and after; landmarks; the flow's error."""
        fixed = self.in_world(self.shapes.pair.fixed)
        out: dict[str, float] = {}
        for name, m in (("before", self.shapes.pair.moving), ("after", self.warped)):
            moved = self.in_world(m)
            there, back = (np.asarray(cKDTree(p).query(q)[0]) for p, q in ((fixed, moved), (moved, fixed)))
            out |= {f"distance_{name}_mm": float((there.mean() + back.mean()) / 2)}
            out |= {f"hd95_{name}_mm": float(max(np.percentile(there, 95), np.percentile(back, 95)))}
        returned = self.warped.moved_by(self.result.inverse).points - self.shapes.pair.moving.points
        out["inverse_consistency_mm"] = float(returned.norm(dim=1).mean()) * self.shapes.frame.length
        if np.isfinite(self.energy_drift):
            out["energy_drift"] = self.energy_drift
        if self.shapes.landmarks is not None:
            ends, starts = self.shapes.landmarks
            reached = self.shapes.frame.to_world(self.result.transform(_domain(starts, self.shapes.frame)))[0].numpy().T
            out["tre_before_mm"] = float(metrics.tre(starts, ends).mean())
            out["tre_mm"] = float(metrics.tre(reached, ends).mean())
        return out

    def summary(self) -> dict[str, Any]:
        """What run.json holds."""
        return described(self.shapes.files, self.result, self.config, self.settings, self.status, self.metrics)

    def save(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write the deformed shapes, the flow and its warps (fixed -> moving, as for images), run.json and report.html under ``out``."""
        outputs = Outputs.prepare(out, [*RESULTS, *OPTIONAL], overwrite=overwrite)
        for name in OPTIONAL:  # of an earlier run with other settings
            outputs.path(name).unlink(missing_ok=True)
        written: list[Path] = []

        def write(name: str, writer: Any, *arguments: Any) -> None:
            writer(outputs.path(name), *arguments)
            written.append(outputs.path(name))

        pair, frame = self.shapes.pair, self.shapes.frame
        for name, shape, moved in (
            ("Warped.vtk", pair.moving, self.warped),
            ("InverseWarped.vtk", pair.fixed, pair.fixed.moved_by(self.result.inverse)),
        ):
            start, end = self.in_world(shape), self.in_world(moved)
            cells = None if shape.cells is None else shape.cells.numpy()
            data = {"displacement": end - start} | ({} if shape.weights is None else {"weights": shape.weights[0].numpy()})
            write(name, io.write_mesh, end, cells, data)
        if self.affine is not None:
            write("0GenericAffine.mat", io.write_affine, self.affine.inverse().in_world(frame))
        like = torch.zeros(1)
        write("1Warp.nii.gz", io.write_warp, displacement(self.inverse_flow, frame, like), frame)
        write("1InverseWarp.nii.gz", io.write_warp, displacement(self.flow, frame, like), frame)
        if self.result.ic is not None:
            write("Flow.vtk", self._write_flow)
            write("initial_conditions.safetensors", write_conditions, self.result.ic)
        summary = self.summary()
        summary["thumbnail"] = self.thumbnail()
        from rdmm.report.html import render

        write("report.html", io.write_atomically, render(summary, self.figures(), self.frames(), points=True).encode())
        return [*written, write_run(outputs, summary, written)]

    @cached_property
    def _affine_and_flow(self) -> tuple[Affine | None, Transform]:
        maps, affine = flat(self.result.transform), None
        while maps and isinstance(maps[0], Affine):
            affine = maps[0] if affine is None else Affine(maps[0].matrix @ affine.matrix)
            maps = maps[1:]
        flow: Transform = Identity()
        for m in maps:
            flow = composed(flow, m)
        return affine, flow

    @property
    def affine(self) -> Affine | None:
        """The affine map that the moving shape goes through before ``flow``; None where there is none."""
        return self._affine_and_flow[0]

    @property
    def flow(self) -> Transform:
        """The deformation that the moving shape goes through, after ``affine``, in domain units of the frame."""
        return self._affine_and_flow[1]

    @property
    def inverse_flow(self) -> Transform:
        """The inverse of ``flow``: from the fixed shape to the moving one as ``affine`` has placed it."""
        return self.result.inverse if self.affine is None else composed(self.result.inverse, self.affine)

    def _write_flow(self, path: Path) -> None:
        """The control points' paths, as lines."""
        dynamics, ic = _dynamics(self.settings["stages"]), self.result.ic
        assert dynamics is not None and ic is not None
        with torch.no_grad():
            states = dynamics.geodesic(ic, self.shapes.pair.moving, TIMES)
            steps = [self.shapes.frame.to_world(s.points)[0].numpy().T for s in states]
        n, t = len(steps[0]), len(steps)
        index = np.arange(n * t).reshape(t, n)
        cells = np.stack([index[:-1].ravel(), index[1:].ravel()], 1)
        io.write_mesh(path, np.concatenate(steps), cells, {"t": np.repeat(TIMES, n)})

    @cached_property
    def picture(self) -> str:
        """Both shapes before and after, in each plane, with the flow's grid: base64 PNG."""
        from rdmm.report.figures import base64_png

        return base64_png(self.figure_by_method({"warped": self}))

    def figures(self) -> list[tuple[str, str]]:
        """(heading, base64 PNG) of every figure of the report."""
        return [("Shapes before and after", self.picture)]

    def frames(self) -> list[dict[str, Any]]:
        """The control points on their way over the fixed shape: for the page's script. [] where there is no geodesic."""
        from rdmm.report.shape_figures import shape_frames

        dynamics, ic = _dynamics(self.settings["stages"]), self.result.ic
        if dynamics is None or ic is None:
            return []
        with torch.no_grad():
            states = dynamics.geodesic(ic, self.shapes.pair.moving, TIMES)
        return shape_frames(self.shapes.pair.fixed, ((s.t, s.points) for s in states), self.shapes.frame)

    def thumbnail(self) -> str:
        """A small base64 JPEG of the shapes before and after, in the first plane."""
        from rdmm.report.shape_figures import shape_thumbnail

        return shape_thumbnail(self.picture, self.shapes.frame.ndim)

    @staticmethod
    def figure_by_method(done: Mapping[str, ShapeRegistration]) -> Any:
        """A matplotlib figure of one pair and its registrations by several methods (name -> registration)."""
        from rdmm.report.shape_figures import ShapeResult, shapes_by_method

        shapes = next(iter(done.values())).shapes
        results = {name: ShapeResult(r.warped, r.flow) for name, r in done.items()}
        return shapes_by_method(shapes.pair.fixed, shapes.pair.moving, results, shapes.frame)


def _domain(points: np.ndarray, frame: Grid) -> Tensor:
    return frame.from_world(torch.as_tensor(points.T[None].copy())).float()


def _dynamics(stage: Any) -> PointLDDMM | None:
    """Of the last deformation."""
    parts: Sequence[Any] = stage.stages if isinstance(stage, Chain) else [stage]
    found = [s.problem.dynamics for s in parts if isinstance(s, Deform)]
    return found[-1] if found else None  # type: ignore[return-value]


def run(shapes: ShapeInputs, config: Mapping[str, Any], *, device: str = "cpu", seed: int = 0, command: str = "") -> ShapeRegistration:
    """Register what was read, as the (composed) config says; ``command`` is noted in run.json."""
    torch.manual_seed(seed)
    target, stages = chosen_device(device), build(config["stages"], "stages")
    marks = None
    if shapes.landmarks is not None:
        marks = Correspondence(*(_domain(x, shapes.frame).to(target) for x in shapes.landmarks))
    pair = Pair(shapes.pair.fixed.to(target), shapes.pair.moving.to(target), landmarks=marks)
    with collect_warnings() as warnings:
        result = staged(stages, pair, device)
    facts = {"command": command, "seed": seed, "device": device, "threads": torch.get_num_threads()}
    settings = {**facts, "warnings": [*shapes.warnings, *warnings], "stages": stages}
    return ShapeRegistration(shapes, result, config, settings, "interrupted" if stop.is_set() else "done")


def register_shapes(
    *,
    fixed: str | Measure,
    moving: str | Measure,
    overrides: Sequence[str] = (),
    landmarks: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    **keys: Any,
) -> ShapeRegistration:
    """Register the shape ``moving`` to ``fixed``: .vtk or .ply files, or measures in world millimetres.

    Args:
        overrides, keys: settings of ``conf/shapes.yaml``, as for ``rdmm.register``.
        landmarks: CSV as for images; they judge, and drive with landmark_weight.
    """
    set_threads(threads)
    config = compose([*overrides, *overrides_of(keys)], "shapes")
    build(config["stages"], "stages")
    return run(read_shapes(fixed, moving, landmarks), config, device=device, seed=seed)
