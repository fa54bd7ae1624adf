"""From files to files: what ``rdmm register`` and ``rdmm.register`` do."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rdmm import io, metrics
from rdmm.config.build import build
from rdmm.config.compose import compose, quoted
from rdmm.data.inputs import Inputs, read_inputs
from rdmm.dynamics.base import Snapshot, energy_drift
from rdmm.dynamics.images import ImageDynamics
from rdmm.io.files import Outputs
from rdmm.io.images import NanPolicy
from rdmm.io.nifti import Source
from rdmm.io.vectors import require_itk_grid
from rdmm.kernels.available import set_threads
from rdmm.registration import outputs as trajectory
from rdmm.registration.outputs import Output
from rdmm.registration.record import described, write_conditions, write_run
from rdmm.runtime.interrupt import stop
from rdmm.runtime.resources import chosen_device, reset_peak_memory
from rdmm.runtime.warnings import collect_warnings
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Correspondence, Pair
from rdmm.spatial.transform import Affine, Dense, Framed, Identity, Placed, Transform, composed, displacement, framed, invert, split
from rdmm.stages.base import Result, Stage
from rdmm.stages.deform import deforms
from rdmm.types import ResourceError, Tensor

if TYPE_CHECKING:
    from rdmm.report.figures import ImageResult

log = logging.getLogger(__name__)

RESULTS = ("1Warp.nii.gz", "1InverseWarp.nii.gz", "Warped.nii.gz", "InverseWarped.nii.gz", "run.json", "report.html")


TIMES = tuple(k / 8 for k in range(9))


OPTIONAL = (
    "0GenericAffine.mat",
    "WarpedLabels.nii.gz",
    "Sigma0.nii.gz",
    "Sigma1.nii.gz",
    "initial_conditions.safetensors",
    "CompositeWarp.nii.gz",
    "InverseCompositeWarp.nii.gz",
)


def file_names(output: Output) -> list[str]:
    """Everything that a registration may write."""
    return [*RESULTS, *OPTIONAL, *trajectory.names(output.times)]


@dataclass(frozen=True, eq=False)
class Registration:
    """A finished registration.

    Attributes:
        transform, inverse: fixed -> moving and back, between world millimetres (RAS+).
        warped: the moving image on the fixed grid.
        energy: terms of the objective at the end.
        status: ``done`` or ``interrupted``.
        has_inverse: False where only the map itself is known (another tool's result).
    """

    inputs: Inputs
    result: Result
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    status: str = "done"
    has_inverse: bool = True

    @property
    def pair(self) -> Pair:
        return self.inputs.pair

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

    @property
    def energy(self) -> dict[str, float]:
        return self.result.energy

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

    @property
    def dynamics(self) -> ImageDynamics | None:
        """Of the last deformable stage, whose initial conditions ``result.ic`` are."""
        found = deforms(self.settings["stages"])
        return found[-1].problem.dynamics if found and self.result.ic is not None else None  # type: ignore[return-value]

    def geodesic(self, times: Sequence[float]) -> list[Snapshot]:
        """The last deformable stage at ``times``, on its shooting grid; [] where there is none."""
        ic, dynamics = self.result.ic, self.dynamics
        if ic is None or dynamics is None:
            return []
        with torch.no_grad():
            return dynamics.geodesic(ic, self.pair.fixed, times)

    @cached_property
    def moments(self) -> list[Snapshot]:
        """The last deformable stage at TIMES."""
        return self.geodesic(TIMES)

    @property
    def shot(self) -> Grid:
        """The shooting grid of the last deformable stage."""
        assert self.result.ic is not None
        return self.result.ic.grid(self.pair.fixed)

    def on_the_way(self) -> Iterator[tuple[Snapshot, Transform]]:
        """The moments, and the maps fixed -> moving at them."""
        for moment in self.moments:
            yield moment, composed(Dense(moment.displacement, self.shot), self.result.before)

    @cached_property
    def energy_drift(self) -> float:
        """Largest relative change of <m, v> over t in [0, 1]: 0 on a geodesic; NaN without one (SVF, affine)."""
        conserved = self.dynamics is not None and self.dynamics.conserves_energy
        return energy_drift(self.moments) if conserved and self.moments else float("nan")

    def sigmas(self) -> tuple[Tensor, Tensor] | None:
        """sigma(x) at t = 0 and t = 1 on the fixed grid, (1, 1, *s) in mm; None where it is the same everywhere."""
        start, end = (self.moments[i].sigma() if self.moments else None for i in (0, -1))
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
        return out | self._by_region(u)

    def _by_region(self, u: Tensor) -> dict[str, float]:
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

    def summary(self) -> dict[str, Any]:
        """What run.json holds."""
        return described(self.inputs.files, self.result, self.config, self.settings, self.status, self.metrics)

    def save(self, out: str | os.PathLike[str], *, overwrite: bool = False, report: bool = True) -> list[Path]:
        """Write the files that README.md lists under the prefix or folder ``out``; the paths, run.json last."""
        outputs = Outputs.prepare(out, file_names(self.output), overwrite=overwrite)
        grid = self.pair.fixed.grid
        for name in set(file_names(self.output)) - set(RESULTS):  # of an earlier run with other settings
            outputs.path(name).unlink(missing_ok=True)
        written = []
        fixed_like, moving_like = self.inputs.stored or (grid, self.pair.moving.grid)

        def write(name: str, writer: Any, *arguments: Any, **keywords: Any) -> None:
            writer(outputs.path(name), *arguments, **keywords)
            written.append(outputs.path(name))

        if self.affine is not None:
            write("0GenericAffine.mat", io.write_affine, self.affine.in_world(grid))
        write("1Warp.nii.gz", io.write_warp, self.deformation, grid, like=fixed_like)
        write("1InverseWarp.nii.gz", io.write_warp, self.inverse_deformation, grid, like=fixed_like)
        write("Warped.nii.gz", io.write_image, self.warped.data, grid, like=fixed_like)
        write("InverseWarped.nii.gz", io.write_image, self.inverse_warped().data, self.pair.moving.grid, like=moving_like)
        if self.warped_labels is not None:
            write("WarpedLabels.nii.gz", io.write_image, self.warped_labels.data, grid, integer=True, like=fixed_like)
        if self.output.composite:
            whole, back = (displacement(Framed(t, grid), grid, self.deformation) for t in (self.transform, self.inverse))
            write("CompositeWarp.nii.gz", io.write_warp, whole, grid, like=fixed_like)
            write("InverseCompositeWarp.nii.gz", io.write_warp, back, grid, like=fixed_like)
        for name, sigma in zip(("Sigma0.nii.gz", "Sigma1.nii.gz"), self.sigmas() or (), strict=False):
            write(name, io.write_image, sigma, grid, like=fixed_like)
        written += self._write_trajectory(outputs, fixed_like)
        if self.result.ic is not None:
            write("initial_conditions.safetensors", write_conditions, self.result.ic)
        summary = self.summary()
        if report:
            from rdmm.report.html import render

            summary["thumbnail"] = self.thumbnail()
            write("report.html", io.write_atomically, render(summary, self.figures(), self.frames()).encode())
        return [*written, write_run(outputs, summary, written)]

    def _result(self) -> ImageResult:
        from rdmm.report.figures import ImageResult

        return ImageResult(self.warped, self.deformation, self.sigmas())

    def figures(self) -> list[tuple[str, str]]:
        """(heading, base64 PNG) of every figure of the report."""
        from rdmm.report.figures import image_figures

        before = self.pair.moved_by(Identity())
        return image_figures(self.pair.fixed, before, self._result(), self.metrics, self.result.history)

    def frames(self) -> list[dict[str, Any]]:
        """The moving image and the grid on their way from t = 0 to t = 1: for the page's script. [] where there is no geodesic."""
        from rdmm.report.animation import image_frames

        if not self.moments:
            return []
        steps = ((moment.t, moment.displacement, transform) for moment, transform in self.on_the_way())
        return image_frames(self.pair.fixed, self.pair.moving, steps, self.shot)

    def thumbnail(self) -> str:
        """Fixed, warped and their difference, a small base64 JPEG."""
        from rdmm.report.figures import image_thumbnail

        return image_thumbnail(self.pair.fixed, self.warped)

    @staticmethod
    def figure_by_method(done: Mapping[str, Registration]) -> Any:
        """A matplotlib figure of one pair and its registrations by several methods (name -> registration)."""
        from rdmm.report.figures import images_by_method

        pair = next(iter(done.values())).pair
        return images_by_method(pair.fixed, pair.moved_by(Identity()), {name: r._result() for name, r in done.items()})

    @property
    def output(self) -> Output:
        return self.settings.get("output", Output())

    def _write_trajectory(self, outputs: Outputs, like: Grid) -> list[Path]:
        if self.result.ic is None or self.dynamics is None or not self.output.times:
            return []
        grid, shot, before = self.pair.fixed.grid, self.shot, self.result.before

        def warped(moment: Snapshot) -> Image:
            return self.pair.moving.moved_by(composed(Dense(moment.displacement, shot), before), grid)

        moments = self.geodesic(self.output.times)
        return list(trajectory.written(moments, grid, like, warped, outputs.path))


def overrides_of(keys: Mapping[str, Any]) -> list[str]:
    """KEY=VALUE texts of keyword arguments; ``__`` in a name stands for a dot."""

    def text(name: str, value: Any) -> str:
        if name == "weights" and value is not None:
            return quoted(os.fspath(value))
        return json.dumps(value) if not isinstance(value, str) else value

    return [f"{k.replace('__', '.')}={text(k, v)}" for k, v in keys.items()]


def run(inputs: Inputs, config: Mapping[str, Any], *, device: str = "cpu", seed: int = 0, command: str = "") -> Registration:
    """Register what was read, as the (composed) config says; ``command`` is noted in run.json."""
    torch.manual_seed(seed)
    target = chosen_device(device)
    stages, intensity, output = (build(config[k], k) for k in ("stages", "intensity", "output"))
    names = [inputs.files.get(k, k) for k in ("fixed", "moving")]
    pair = inputs.pair
    require_itk_grid(pair.fixed.grid, names[0])
    regions = None if pair.regions is None else pair.regions.to(target)
    marks = None
    if config.get("weights"):
        inputs = replace(inputs, files={**inputs.files, "weights": str(config["weights"])})
    if inputs.landmarks is not None:
        points = (pair.fixed.grid.from_world(torch.as_tensor(x.T[None])) for x in (inputs.landmarks.fixed, inputs.landmarks.moving))
        marks = Correspondence(*(x.to(pair.fixed.data.dtype).to(target) for x in points))
    with collect_warnings() as warnings:
        fixed, moving = (intensity(x, name).to(target) for x, name in zip((pair.fixed, pair.moving), names, strict=True))
        result = staged(stages, Pair(fixed, moving, pair.initial, regions, marks), device)
    facts = {"command": command, "seed": seed, "device": device, "threads": torch.get_num_threads()}
    settings = {**facts, "warnings": [*inputs.warnings, *warnings], "stages": stages, "output": output}
    return Registration(inputs, result, config, settings, "interrupted" if stop.is_set() else "done")


def staged(stages: Stage, pair: Pair, device: str) -> Result:
    """The result of stages on CPU, with the seconds they took in all."""
    reset_peak_memory()
    begin = time.perf_counter()
    try:
        result = stages(pair)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"out of memory on {device}: {error}; use smaller optimizer.scales or optimizer.shooting") from error
    cpu = torch.device("cpu")
    result = replace(result, **{k: _to(getattr(result, k), cpu) for k in ("transform", "inverse", "ic", "before")})
    result.seconds["total"] = time.perf_counter() - begin
    return result


def _to(x: Any, device: torch.device) -> Any:
    """A frozen dataclass of tensors on another device."""
    if isinstance(x, Tensor):
        return x.detach().to(device)
    if hasattr(x, "__dataclass_fields__"):
        return replace(x, **{k: _to(getattr(x, k), device) for k in x.__dataclass_fields__ if k != "grid"})
    return x


def register(
    *,
    fixed: Source | Image,
    moving: Source | Image,
    overrides: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    init: str | None = None,
    fixed_labels: Source | None = None,
    moving_labels: Source | None = None,
    fixed_mask: Source | None = None,
    moving_mask: Source | None = None,
    landmarks: str | os.PathLike[str] | None = None,
    fixed_keypoints: str | os.PathLike[str] | None = None,
    moving_keypoints: str | os.PathLike[str] | None = None,
    regions: Source | None = None,
    initial: str | None = None,
    nan: NanPolicy = "error",
    volume: int | None = None,
    strict: bool = False,
    **keys: Any,
) -> Registration:
    """Register ``moving`` to ``fixed``.

    Args:
        fixed, moving: paths, nibabel images or Images.
        overrides, keys: settings of ``conf/register.yaml``, as "KEY=VALUE" or as keywords, e.g. dynamics="rdmm",
            optimizer__scales=[0.5, 1.0] (``__`` for a dot).
        init: start of the affine search: auto, header, com or axes.
        others: as the options of ``rdmm register``.

    Raises:
        RdmmError: see rdmm.types.
    """
    set_threads(threads)
    more = [] if init is None else [f"affine.init={init}"]
    config = compose([*overrides, *overrides_of(keys), *more])
    build(config["stages"], "stages")  # settings are checked before any data is read
    inputs = read_inputs(
        fixed,
        moving,
        fixed_labels=fixed_labels,
        moving_labels=moving_labels,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        landmarks=landmarks,
        fixed_keypoints=fixed_keypoints,
        moving_keypoints=moving_keypoints,
        regions=regions,
        initial=initial,
        nan=nan,
        volume=volume,
        strict=strict,
        require_overlap=init != "com",
    )
    return run(inputs, config, device=device, seed=seed)
