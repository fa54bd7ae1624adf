"""The presets on real pairs: Dice or landmark error before and after, folds, SDlogJ, seconds per stage, peak memory.

    python benchmarks/pairs.py [--pairs brain2mm lung slice ...] [--threads 2] [--set KEY=VALUE ...] [--pictures DIR]

Each pair is registered in a process of its own, so that peak memory is its own. Data are found by RDMM_DATA (default
../shared/data). Labels are warped by nearest neighbor; folds are those of the whole map, by central differences.
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

import torch

from rdmm import InputError
from rdmm.data.inputs import Inputs, read_inputs
from rdmm.data.studies.brains import Brains, BrainSlices
from rdmm.data.studies.knees import Knees
from rdmm.data.studies.livers import Livers
from rdmm.data.studies.lungs import LungMasks, RightLung
from rdmm.kernels.available import set_threads
from rdmm.registration.entry import compose_settings, run

DATA = Path(os.environ.get("RDMM_DATA", "../shared/data"))


def oasis(i: int, j: int) -> Inputs:
    return read_inputs(*(DATA / f"slices_2d/oasis/oasis2d_{k:04d}.nii.gz" for k in (j, i)))


MASKS = ["similarity=ssd", "similarity_weight=1", "optimizer.scales=[0.25,0.5]", "optimizer.iterations=[40,30]"]
KNEE = ["similarity=ssd", "similarity_weight=10", "affine.init=com"]
ROOT = str(DATA)
CASES: dict[str, tuple[Callable[[], Inputs], list[str]]] = {
    "slice": (lambda: BrainSlices(ROOT).cases()["slice_01-02"](), []),
    "oasis0-1": (lambda: oasis(0, 1), []),
    "oasis2-3": (lambda: oasis(2, 3), []),
    "brain2mm": (lambda: Brains(ROOT).cases()["brain_a-b"](), []),
    "lung": (lambda: RightLung(ROOT).cases()["right_lung"](), ["intensity.window=[-1000,500]"]),
    **{name: (read, []) for name, read in Livers(ROOT).cases().items()},
    "knee": (lambda: Knees(ROOT).cases()["9055361_00m-9275309_00m"](), KNEE),
    **{name: (read, MASKS) for name, read in LungMasks(ROOT, voxel=0.0).cases().items()},
    "brain1mm": (lambda: Brains(ROOT, half=False).cases()["brain_a-b"](), []),
}


def one(name: str, settings: list[str], threads: int, pictures: str | None) -> dict[str, object]:
    set_threads(threads)
    read, own = CASES[name]
    registration = run(read(), compose_settings([*own, *settings]))
    measures = {k: v for k, v in registration.metrics.items() if isinstance(v, float)}
    moved, fixed = registration.warped.data.flatten(), registration.pair.fixed.data.flatten()
    out: dict[str, object] = {**measures, "ncc": float(torch.corrcoef(torch.stack([moved, fixed]))[0, 1])}
    out |= {f"s_{k}": v for k, v in registration.result.seconds.items()}
    out["peak_GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if pictures:
        from rdmm.report.html import render

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
