"""Time and memory of the default command by the size of the images: both should grow as the number of voxels, not faster.

    python benchmarks/scale.py [--sizes 64x64x64 128x128x128 1024x1024 ...] [--threads 2] [--set KEY=VALUE ...]

The pairs are synthetic: random textures of the same appearance at every size, one of them moved by a random diffeomorphism. Each pair is
registered in its own process, files included, so that its peak memory can be measured.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time

from textures import textures

from rdmm.kernels.available import set_threads
from rdmm.registration.entry import register

SIZES = ["64x64x64", "96x96x96", "128x128x128", "192x192x192", "256x256x256", "512x512", "1024x1024", "2048x2048", "4096x4096"]


def measure(shape: tuple[int, ...], settings: list[str]) -> dict[str, float]:
    """Register a pair of textures in this process, and write the files."""
    fixed, moving = textures(shape)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = register(fixed, moving, overrides=settings)
    with tempfile.TemporaryDirectory() as folder:
        result.save(f"{folder}/")
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.perf_counter() - start, "kib": after.ru_maxrss, **result.result.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--alone", action="store_true", help="register the first size in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.alone:
        set_threads(arguments.threads)
        print(json.dumps(measure(tuple(map(int, arguments.sizes[0].split("x"))), arguments.set)))
        return
    print("| size | CPU s | us a voxel | wall s | affine s | deform s | peak GB | bytes a voxel |\n|---|---|---|---|---|---|---|---|")
    for size in arguments.sizes:
        command = [sys.executable, __file__, "--alone", "--sizes", size, "--threads", str(arguments.threads), "--set", *arguments.set]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        voxels = math.prod(map(int, size.split("x")))
        figures = (row["cpu"], 1e6 * row["cpu"] / voxels, row["wall"], row["affine"], row["deform"], row["kib"] / 2**20)
        print(f"| {size} | {' | '.join(f'{x:.3g}' for x in figures)} | {1024 * row['kib'] / voxels:.3g} |", flush=True)


if __name__ == "__main__":
    main()
