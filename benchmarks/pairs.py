"""The presets on real pairs: Dice or landmark error before and after, folds, SDlogJ, seconds per stage, peak memory.

    python benchmarks/pairs.py [--pairs brain2mm lung slice ...] [--threads 2] [--set KEY=VALUE ...] [--pictures DIR]

Each pair is registered in a process of its own, so that peak memory is its own. Data are found by RDMM_DATA (default
../shared/data). Labels are warped by nearest neighbour; folds are those of the whole map, by central differences.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from rdmm import Grid, Image, InputError, io, metrics
from rdmm.config import compose
from rdmm.registration import Inputs, Registration, run
from rdmm.resources import set_threads
from rdmm.shape import Pair
from rdmm.transform import Affine, composed, displacement

DATA = Path(os.environ.get("RDMM_DATA", "../shared/data"))
BRAIN = [2, 3, 4, 7, 8, 10, 11, 12, 13, 16, 17, 18, 28, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 60]


@dataclass
class Case:
    """A pair with what it is judged by, and the settings that suit its kind."""

    pair: Pair
    fixed_labels: Image | None = None
    moving_labels: Image | None = None
    labels: list[int] | None = None
    landmarks: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)


def halved(image: Image, labels: Image) -> tuple[Image, Image]:
    """2 mm from 1 mm: means of 2 x 2 x 2 voxels; every second label."""
    affine = np.asarray(image.grid.affine)
    shape = tuple(n // 2 for n in image.grid.shape)
    centre = affine @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1.0]])
    corner = affine @ np.diag([2.0, 2, 2, 1])
    data = torch.nn.functional.avg_pool3d(image.data, 2)
    return Image(data, Grid(shape, centre)), Image(labels.data[..., ::2, ::2, ::2], Grid(shape, corner))  # type: ignore[arg-type]


def brain(half: bool) -> Case:
    read = [
        (io.read_image(DATA / f"brain_mri/brain_{s}_t1.nii.gz"), io.read_labels(DATA / f"brain_mri/brain_{s}_labels.nii.gz")) for s in "ab"
    ]
    (fixed, fixed_labels), (moving, moving_labels) = [halved(*x) for x in read] if half else read
    return Case(Pair(fixed, moving), fixed_labels, moving_labels, BRAIN)


def at_2mm(image: Image) -> Image:
    """Resampled to voxels of about 2 mm (never finer than the file)."""
    shape = [round((n - 1) * v / max(2.0, v)) + 1 for n, v in zip(image.grid.shape, image.grid.voxel, strict=True)]
    return image.resampled(image.grid.resized(shape))


def lung() -> Case:
    folder = DATA / "lung_ct/right_lung"
    fixed, moving = (io.read_image(folder / f"{s}.nii.gz") for s in ("baseline", "followup"))
    labels = [io.read_labels(folder / f"{s}_mask.nii.gz") for s in ("baseline", "followup")]
    settings = ["intensity.window=[-1000,500]"]
    return Case(Pair(at_2mm(fixed), at_2mm(moving)), *labels, [1], settings=settings)


def copd(case: str) -> Case:
    folder = DATA / "lung_ct/copd_masks"
    fixed, moving = (io.read_labels(folder / f"case_{case}_{s}_mask.nii.gz") for s in ("exhale", "inhale"))
    a, b, _ = io.read_landmarks(folder / f"case_{case}_landmarks.csv")
    settings = ["similarity=ssd", "similarity_weight=1", "optimizer.scales=[0.25,0.5]", "optimizer.iterations=[40,30]"]
    return Case(Pair(fixed, moving), fixed, moving, [1], {"lung": (a, b)}, settings)


def liver(subject: str, moment: str) -> Case:
    folder = DATA / "liver_mr"
    fixed, moving = (io.read_image(folder / f"subject_{subject}_{s}.nii.gz") for s in ("exhale", f"cyc_{moment}"))
    a, b, regions = io.read_landmarks(folder / f"subject_{subject}_exhale_cyc_{moment}_landmarks.csv")
    inside = np.array([r == "liver" for r in regions])
    marks = {"liver": (a[inside], b[inside]), "outside": (a[~inside], b[~inside])}
    return Case(Pair(fixed, moving, regions=hull(b[inside], moving.grid)), landmarks=marks)


def hull(points: np.ndarray, grid: Grid, margin: float = 10.0) -> Image:
    """1 within ``margin`` millimetres of the convex hull of points (n, 3): about the liver, for want of its outline."""
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import Delaunay

    world = grid.to_world(grid.identity(torch.zeros(1, dtype=torch.float64)))[0].flatten(1).T.numpy()
    inside = (Delaunay(points).find_simplex(world) >= 0).reshape(grid.shape)
    near = distance_transform_edt(~inside, sampling=grid.voxel) <= margin
    return Image(torch.from_numpy(near.astype(np.float32))[None, None], grid)


def strided(labels: Image) -> Image:
    """Every second, third and third voxel: about 1.1 to 1.4 mm from 0.7 x 0.365 x 0.365."""
    data = labels.data[..., ::2, ::3, ::3]
    return Image(data, Grid(tuple(data.shape[2:]), np.asarray(labels.grid.affine) @ np.diag([2.0, 3, 3, 1])))  # type: ignore[arg-type]


def knee() -> Case:
    names = ("oai_9055361_00m", "oai_9275309_00m")
    fixed, moving = (io.read_labels(DATA / f"knee_mri/{n}_labels.nii.gz") for n in names)
    fixed, moving = strided(fixed), strided(moving)
    table = torch.tensor([0.0, 0.5, 1.0, 0.4, 0.9, 0.3, 0.8, 0.5, 0.4, 0.3])
    images = [Image(table[x.data.long().clamp(0, 9)], x.grid) for x in (fixed, moving)]
    settings = ["similarity=ssd", "similarity_weight=10", "affine.init=com"]
    return Case(Pair(*images), fixed, moving, [1, 2, 3, 4, 5, 6], settings=settings)


def slice_2d() -> Case:
    folder = DATA / "slices_2d/oasis_trt20_labelled"
    images, labels = (
        [io.read_image(folder / f"{k}_t1.nii.gz") for k in ("01", "02")],
        [io.read_labels(folder / f"{k}_labels.nii.gz") for k in ("01", "02")],
    )
    return Case(Pair(*images), *labels)


def oasis(i: int, j: int) -> Case:
    return Case(Pair(*(io.read_image(DATA / f"slices_2d/oasis/oasis2d_{k:04d}.nii.gz") for k in (j, i))))


CASES: dict[str, Callable[[], Case]] = {
    "slice": slice_2d,
    "oasis0-1": lambda: oasis(0, 1),
    "oasis2-3": lambda: oasis(2, 3),
    "brain2mm": lambda: brain(True),
    "lung": lung,
    "liver19a": lambda: liver("19", "1_6"),
    "liver19b": lambda: liver("19", "1_9"),
    "liver23a": lambda: liver("23", "1_4"),
    "liver23b": lambda: liver("23", "5_4"),
    "knee": knee,
    **{f"copd{i:02d}": (lambda i=i: copd(f"{i:02d}")) for i in range(1, 7)},
    "brain1mm": lambda: brain(False),
}


def judged(case: Case, registration: Registration) -> dict[str, object]:
    """Measures of one registration, in the order of the table."""
    grid = case.pair.fixed.grid
    transform = composed(registration.result.transform, case.pair.initial)
    out: dict[str, object] = {}
    if case.fixed_labels is not None and case.moving_labels is not None:
        target = case.fixed_labels.grid
        frame = Affine(torch.as_tensor(np.linalg.inv(grid.frame) @ target.frame))
        back = frame.inverse()

        def in_labels(x: torch.Tensor) -> torch.Tensor:
            return back(transform(frame(x)))

        values = metrics.dice(case.moving_labels.moved_by(in_labels, target, mode="nearest").data, case.fixed_labels.data, case.labels)
        before = metrics.dice(case.moving_labels.moved_by(lambda x: x, target, mode="nearest").data, case.fixed_labels.data, case.labels)
        out |= {"dice_before": metrics.mean_dice(before)[0], "dice": metrics.mean_dice(values)[0]}
    for name, (a, b) in case.landmarks.items():
        out |= {f"tre_{name}_before": metrics.tre(a, b).mean(), f"tre_{name}": metrics.tre(a, b, registration.transform).mean()}
    moved, fixed = registration.warped.data.flatten(), case.pair.fixed.data.flatten()
    out["ncc"] = float(torch.corrcoef(torch.stack([moved, fixed]))[0, 1])
    u = displacement(transform, grid, torch.zeros(1))
    regular = metrics.regularity(u, grid)
    out |= {"folds_%": regular["folds_percent"], "folded_cells_%": regular["folded_cells_percent"], "sdlogJ": regular["sd_log_jacobian"]}
    return out


def one(name: str, settings: list[str], threads: int, pictures: str | None) -> dict[str, object]:
    set_threads(threads)
    case = CASES[name]()
    p = case.pair
    case.pair = Pair(p.fixed.canonical(), p.moving.canonical(), regions=None if p.regions is None else p.regions.canonical())
    registration = run(Inputs(case.pair), compose([*case.settings, *settings]))
    out = judged(case, registration)
    out |= {f"s_{k}": v for k, v in registration.result.seconds.items()}
    out["peak_GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if pictures:
        from rdmm.report import render

        Path(pictures).mkdir(parents=True, exist_ok=True)
        Path(pictures, f"{name}.html").write_text(render(registration, registration.summary()))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--pictures", help="folder for a report of each pair")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if not DATA.is_dir():
        raise InputError(f"{DATA}: no such folder; set RDMM_DATA to the registration data")
    if a.worker:
        print(json.dumps(one(a.pairs[0], a.settings, a.threads, a.pictures), default=float))
        return
    print(f"rdmm {' '.join(a.settings) or '(default preset)'}, {a.threads} threads, torch {torch.__version__}\n")
    for name in a.pairs:
        begin = time.perf_counter()
        command = [sys.executable, __file__, "--worker", "--pairs", name, "--threads", str(a.threads), "--set", *a.settings]
        done = subprocess.run(command + (["--pictures", a.pictures] if a.pictures else []), capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: FAILED\n{done.stderr[-2000:]}", flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1]) | {"s_with_start": time.perf_counter() - begin}
        print(f"{name}: " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
