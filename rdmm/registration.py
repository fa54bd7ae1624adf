"""From files to files: what ``rdmm register`` and ``rdmm.register`` do."""

from __future__ import annotations

import json
import logging
import os
import platform
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdmm import io, metrics
from rdmm.config import build, compose
from rdmm.dynamics import RDMM
from rdmm.grid import Grid
from rdmm.io.files import Outputs
from rdmm.io.nifti import NanPolicy, Source
from rdmm.io.warps import require_itk_grid
from rdmm.optimise import stop
from rdmm.resources import check_memory, chosen_device, set_threads
from rdmm.shape import Image, Pair, bounds
from rdmm.stages import Chain, Deform, Result, overlap_fraction
from rdmm.transform import Affine, Dense, Identity, Placed, Transform, composed, displacement, framed, invert, split
from rdmm.types import InputError, ResourceError, Tensor
from rdmm.version import __version__

log = logging.getLogger(__name__)

RESULTS = ("1Warp.nii.gz", "1InverseWarp.nii.gz", "Warped.nii.gz", "InverseWarped.nii.gz", "run.json", "report.html")
OPTIONAL = ("0GenericAffine.mat", "WarpedLabels.nii.gz", "Sigma0.nii.gz", "Sigma1.nii.gz", "initial_conditions.safetensors")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything a registration is given, read and checked."""

    pair: Pair
    fixed_labels: Image | None = None
    moving_labels: Image | None = None
    landmarks: tuple[np.ndarray, np.ndarray] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    stored: tuple[Grid, Grid] | None = None  # how the fixed and moving files order their voxels


@dataclass(frozen=True, eq=False)
class Registration:
    """A finished registration.

    Attributes:
        transform, inverse: fixed -> moving and back, between world millimetres (RAS+).
        warped: the moving image on the fixed grid.
        energy: terms of the objective at the end.
        status: ``done`` or ``interrupted``.
    """

    inputs: Inputs
    result: Result
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    status: str = "done"

    @property
    def pair(self) -> Pair:
        return self.inputs.pair

    @cached_property
    def _maps(self) -> tuple[Tensor, Tensor, Affine | None]:
        """Displacements of the deformation and of its inverse on the fixed grid, and the affine that comes after."""
        grid, like = self.pair.fixed.grid, self.pair.fixed.data
        deformation, affine = split(composed(self.result.transform, self.pair.initial))
        u = displacement(deformation, grid, like)
        initial = self.pair.initial
        if isinstance(initial, Identity | Affine):
            back = self.result.inverse if isinstance(initial, Identity) else composed(initial.inverse(), self.result.inverse)
            inverse = displacement(back if affine is None else composed(affine, back), grid, like)
        else:
            inverse, residual = invert(u, grid)
            log.info("the inverse of the initial warp was found by iteration, residual %.2g voxels", residual)
        return u, inverse, affine

    @property
    def transform(self) -> Transform:
        return Placed(composed(self.result.transform, self.pair.initial), self.pair.fixed.grid)

    @property
    def inverse(self) -> Transform:
        _, w, affine = self._maps
        grid = self.pair.fixed.grid
        return Placed(composed(Identity() if affine is None else affine.inverse(), Dense(w, grid)), grid)

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
        from rdmm.ops import sample

        return Image(sample(fixed.data, points, fixed.grid), moving.grid)

    def sigmas(self) -> tuple[Tensor, Tensor] | None:
        """sigma(x) at t = 0 and t = 1 on the fixed grid, (1, 1, *s) in mm, of an RDMM."""
        dynamics = next((s.problem.dynamics for s in _deforms(self.settings["stages"])), None)
        ic = self.result.ic
        if not isinstance(dynamics, RDMM) or ic is None or ic.weights is None:
            return None
        from rdmm.ops import resize, sample

        grid = ic.grid(self.pair.source)
        u = displacement(split(self.result.transform)[0], grid, ic.momentum)
        carried = sample(ic.weights, grid.identity(u) + u, grid)
        return tuple(resize(dynamics.local_sigma(h, grid), self.pair.fixed.grid.shape) for h in (ic.weights, carried))

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Regularity of the deformation, and Dice and TRE (mm) before and after where labels and landmarks were given."""
        grid, (u, _, _) = self.pair.fixed.grid, self._maps
        out: dict[str, Any] = metrics.regularity(u, grid)
        out["inverse_consistency_mm"] = metrics.inverse_consistency(self.result.transform, self.result.inverse, grid)
        fixed_labels, moving_labels = self.inputs.fixed_labels, self.inputs.moving_labels
        if fixed_labels is not None and moving_labels is not None:
            before = moving_labels.moved_by(self.pair.initial, grid, mode="nearest")
            assert self.warped_labels is not None
            for name, labels in (("dice_before", before), ("dice", self.warped_labels)):
                values = metrics.dice(labels.data, fixed_labels.data)
                out[name], out["dice_n_valid"] = metrics.mean_dice(values)
            out["dice_per_label"] = values
        if self.inputs.landmarks is not None:
            fixed, moving = self.inputs.landmarks
            out["tre_before_mm"] = float(metrics.tre(fixed, moving).mean())
            out["tre_mm"] = float(metrics.tre(fixed, moving, self.transform).mean())
        return out

    def summary(self) -> dict[str, Any]:
        """What run.json holds."""
        files = {k: {"path": v, "sha256": io.sha256(v)} for k, v in self.inputs.files.items()}
        settings = {k: v for k, v in self.settings.items() if k != "stages"}
        return {
            "status": self.status,
            "inputs": files,
            "versions": {"rdmm": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "config": self.config,
            **settings,
            "metrics": self.metrics,
            "energy": self.energy,
            "seconds": self.result.seconds,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "history": self.result.history,
        }

    def save(self, out: str | os.PathLike[str], *, overwrite: bool = False, report: bool = True) -> list[Path]:
        """Write the files of INTERFACE.md under the prefix or folder ``out``; the paths, run.json last."""
        outputs = Outputs.prepare(out, [*RESULTS, *OPTIONAL], overwrite=overwrite)
        grid, (u, inverse, affine) = self.pair.fixed.grid, self._maps
        for name in OPTIONAL:  # of an earlier run with other settings
            outputs.path(name).unlink(missing_ok=True)
        written = []
        fixed_like, moving_like = self.inputs.stored or (grid, self.pair.moving.grid)

        def write(name: str, writer: Any, *arguments: Any, **keywords: Any) -> None:
            writer(outputs.path(name), *arguments, **keywords)
            written.append(outputs.path(name))

        if affine is not None:
            write("0GenericAffine.mat", io.write_affine, affine.in_world(grid))
        write("1Warp.nii.gz", io.write_warp, u, grid, like=fixed_like)
        write("1InverseWarp.nii.gz", io.write_warp, inverse, grid, like=fixed_like)
        write("Warped.nii.gz", io.write_image, self.warped.data, grid, like=fixed_like)
        write("InverseWarped.nii.gz", io.write_image, self.inverse_warped().data, self.pair.moving.grid, like=moving_like)
        if self.warped_labels is not None:
            write("WarpedLabels.nii.gz", io.write_image, self.warped_labels.data, grid, integer=True, like=fixed_like)
        for name, sigma in zip(("Sigma0.nii.gz", "Sigma1.nii.gz"), self.sigmas() or (), strict=False):
            write(name, io.write_image, sigma, grid, like=fixed_like)
        if self.result.ic is not None:
            write("initial_conditions.safetensors", _write_conditions, self.result.ic)
        summary = self.summary()
        if report:
            from rdmm.report import render

            write("report.html", io.write_atomically, render(self, summary).encode())
        text = json.dumps(_jsonable(summary), indent=1, allow_nan=False)
        write("run.json", io.write_atomically, text.encode())
        return written


def _jsonable(x: Any) -> Any:
    """Without NaN and infinity, which JSON does not have: null."""
    if isinstance(x, dict):
        return {str(k): _jsonable(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_jsonable(v) for v in x]
    return None if isinstance(x, float) and not np.isfinite(x) else x


def _write_conditions(path: Path, ic: Any) -> None:
    from safetensors.torch import save

    tensors = {"momentum": ic.momentum} | ({} if ic.weights is None else {"weights": ic.weights})
    io.write_atomically(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def _deforms(stage: Any) -> list[Deform]:
    if isinstance(stage, Chain):
        return [d for s in stage.stages for d in _deforms(s)]
    return [stage] if isinstance(stage, Deform) else []


def read_inputs(
    fixed: Source | Image,
    moving: Source | Image,
    *,
    fixed_labels: Source | None = None,
    moving_labels: Source | None = None,
    fixed_mask: Source | None = None,
    moving_mask: Source | None = None,
    landmarks: str | os.PathLike[str] | None = None,
    regions: Source | None = None,
    initial: str | None = None,
    nan: NanPolicy = "error",
    volume: int | None = None,
    strict: bool = False,
    require_overlap: bool = True,
) -> Inputs:
    """Read and check; INTERFACE.md tells what each is. Raises InputError, ResourceError."""
    check_memory([fixed, moving])
    images = [x.single() if isinstance(x, Image) else io.read_image(x, nan=nan, volume=volume, strict=strict) for x in (fixed, moving)]
    target, source = images
    if target.grid.ndim != source.grid.ndim:
        raise InputError(f"fixed is {target.grid.ndim}D {target.grid.shape} but moving is {source.grid.ndim}D {source.grid.shape}")
    labels = [None if p is None else io.read_labels(p, like) for p, like in ((fixed_labels, target), (moving_labels, source))]
    region_map = None if regions is None else io.read_labels(regions, source)
    target = target if fixed_mask is None else io.read_mask(fixed_mask, target)
    source = source if moving_mask is None else io.read_mask(moving_mask, source)
    stored = (target.grid, source.grid)
    target, source, region_map = target.canonical(), source.canonical(), None if region_map is None else region_map.canonical()
    start = Identity() if initial is None else framed(io.read_transform(initial), target.grid)
    pair = Pair(target, source, start, region_map)
    if require_overlap and overlap_fraction(pair) == 0:
        raise InputError(
            f"the images do not overlap in the world: {bounds([target.grid, source.grid])}; "
            "if their geometry is wrong, start from their centres of mass with --init com"
        )
    points = None
    if landmarks is not None:
        points = io.read_landmarks(landmarks, target.grid.ndim)[:2]
        _check_inside(landmarks, points[0], target, "fixed")
    given = {"fixed": fixed, "moving": moving, "fixed_labels": fixed_labels, "moving_labels": moving_labels, "fixed_mask": fixed_mask}
    given |= {"moving_mask": moving_mask, "landmarks": landmarks, "regions": regions, "initial": initial}
    files = {k: os.fspath(v) for k, v in given.items() if isinstance(v, str | os.PathLike) and Path(v).is_file()}
    labels = [None if x is None else x.canonical() for x in labels]
    return Inputs(pair, labels[0], labels[1], points, files, stored)


def _check_inside(path: str | os.PathLike[str], points: np.ndarray, image: Image, kind: str) -> None:
    low, high = image.grid.corners()
    margin = 0.1 * image.grid.length
    outside = ((points < low - margin) | (points > high + margin)).any(1)
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError(
            f"{path}: row {row + 2}: the {kind} point {points[row].round(1).tolist()} is far outside the {kind} image "
            f"{bounds([image.grid])}; are the landmarks in world millimetres (RAS+)?"
        )


def overrides_of(keys: Mapping[str, Any]) -> list[str]:
    """KEY=VALUE texts of keyword arguments; ``__`` in a name stands for a dot."""

    def text(value: Any) -> str:
        return json.dumps(value) if not isinstance(value, str) else value

    return [f"{k.replace('__', '.')}={text(v)}" for k, v in keys.items()]


def run(inputs: Inputs, config: Mapping[str, Any], *, device: str = "cpu", seed: int = 0) -> Registration:
    """Register what was read, as the (composed) config says."""
    torch.manual_seed(seed)
    target = chosen_device(device)
    stages, intensity = build(config["stages"], "stages"), build(config["intensity"], "intensity")
    names = [inputs.files.get(k, k) for k in ("fixed", "moving")]
    pair = inputs.pair
    require_itk_grid(pair.fixed.grid, names[0])
    regions = None if pair.regions is None else pair.regions.to(target)
    seen = replace(
        pair, regions=regions, fixed=intensity(pair.fixed, names[0]).to(target), moving=intensity(pair.moving, names[1]).to(target)
    )
    begin = time.perf_counter()
    try:
        result = stages(seen)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"out of memory on {device}: {error}; use smaller optimizer.scales or optimizer.shooting") from error
    cpu = torch.device("cpu")
    result = replace(result, transform=_to(result.transform, cpu), inverse=_to(result.inverse, cpu), ic=_to(result.ic, cpu))
    result.seconds["total"] = time.perf_counter() - begin
    settings = {"seed": seed, "device": device, "threads": torch.get_num_threads(), "stages": stages}
    return Registration(inputs, result, config, settings, "interrupted" if stop.is_set() else "done")


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
        regions=regions,
        initial=initial,
        nan=nan,
        volume=volume,
        strict=strict,
        require_overlap=init != "com",
    )
    return run(inputs, config, device=device, seed=seed)
