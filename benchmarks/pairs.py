"""The presets on real pairs: Dice or landmark error before and after, folds, SDlogJ, seconds per stage, peak memory.

    python benchmarks/pairs.py [--pairs brain2mm lung slice ...] [--threads 2] [--set KEY=VALUE ...] [--pictures DIR]

Each pair is registered in its own process, so that its peak memory can be measured. RDMM_DATA is the folder of the data (default
../shared/data). Labels are warped by nearest-neighbor interpolation; folds are those of the total map, by central differences.
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
from pathlib import Path
from typing import Any

import torch

from rdmm import InputError
from rdmm.data.inputs import Inputs, read_inputs
from rdmm.data.studies.brains import Brains, BrainSlices
from rdmm.data.studies.knees import Knees
from rdmm.data.studies.livers import Livers
from rdmm.data.studies.lungs import LungMasks, RightLung
from rdmm.kernels.available import set_threads
from rdmm.registration.entry import compose_settings, run
from rdmm.registration.images import Registration

DATA = Path(os.environ.get("RDMM_DATA", "../shared/data"))


def read_oasis_pair(i: int, j: int) -> Inputs:
    return read_inputs(*(DATA / f"slices_2d/oasis/oasis2d_{k:04d}.nii.gz" for k in (j, i)))


MASK_SETTINGS = ["similarity=ssd", "similarity_weight=1", "optimizer.scales=[0.25,0.5]", "optimizer.iterations=[40,30]"]
KNEE_SETTINGS = ["similarity=ssd", "similarity_weight=10", "affine.init=com"]
ROOT = str(DATA)
CASES: dict[str, tuple[Callable[[], Inputs], list[str]]] = {
    "slice": (lambda: BrainSlices(ROOT).cases()["slice_01-02"](), []),
    "oasis0-1": (lambda: read_oasis_pair(0, 1), []),
    "oasis2-3": (lambda: read_oasis_pair(2, 3), []),
    "brain2mm": (lambda: Brains(ROOT).cases()["brain_a-b"](), []),
    "lung": (lambda: RightLung(ROOT).cases()["right_lung"](), ["intensity.window=[-1000,500]"]),
    **{name: (read, []) for name, read in Livers(ROOT).cases().items()},
    "knee": (lambda: Knees(ROOT).cases()["9055361_00m-9275309_00m"](), KNEE_SETTINGS),
    **{name: (read, MASK_SETTINGS) for name, read in LungMasks(ROOT, voxel=0.0).cases().items()},
    "brain1mm": (lambda: Brains(ROOT, half=False).cases()["brain_a-b"](), []),
}


def numbers(registration: Registration) -> dict[str, float]:
    """The metrics of a registration by rdmm, or of another tool's result, that are numbers: one evaluator for all methods."""
    return {k: v for k, v in registration.metrics.items() if isinstance(v, int | float)}


def rows_of_worker(script: str, *arguments: str) -> list[dict[str, Any]]:
    """The lines of JSON that a script prints, run in its own process. If it fails, the end of what it said is printed."""
    process = subprocess.run([sys.executable, script, "--worker", *arguments], capture_output=True, text=True, check=False)
    if process.returncode:
        print(f"FAILED: {' '.join(arguments)}\n{process.stderr[-2000:]}", flush=True)
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]


def register_pair(name: str, settings: list[str], threads: int, pictures: str | None) -> dict[str, object]:
    set_threads(threads)
    read, own = CASES[name]
    registration = run(read(), compose_settings([*own, *settings]))
    moved, fixed = registration.moved.data.flatten(), registration.pair.fixed.data.flatten()
    out: dict[str, object] = {**numbers(registration), "ncc": float(torch.corrcoef(torch.stack([moved, fixed]))[0, 1])}
    out |= {f"s_{k}": v for k, v in registration.result.seconds.items()}
    out["peak_GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if pictures:
        Path(pictures).mkdir(parents=True, exist_ok=True)
        Path(pictures, f"{name}.html").write_text(registration.render_report(registration.summary()))
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
        print(json.dumps(register_pair(a.pairs[0], a.settings, a.threads, a.pictures), default=float))
        return
    print(f"rdmm {' '.join(a.settings) or '(default preset)'}, {a.threads} threads, torch {torch.__version__}\n")
    for name in a.pairs:
        begin = time.perf_counter()
        pictures = ["--pictures", a.pictures] if a.pictures else []
        for row in rows_of_worker(__file__, "--pairs", name, "--threads", str(a.threads), *pictures, "--set", *a.settings):
            row["s_with_start"] = time.perf_counter() - begin
            print(f"{name}: " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
