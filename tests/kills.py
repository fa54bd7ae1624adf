"""Kill registrations and batches at random moments, and look at what is left. tests/test_kills.py does a few of them.

    python tests/kills.py --moments 50 [--folder DIR] [--seed 0]

After every kill: each run.json of status done lists files that are there and have its checksums, and no result is cut. After the last
kill of each kind, the command is run to its end: its results are those of a run that nothing disturbed, and nothing else is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rdmm import io
from rdmm.data.synthetic.scenes import shapes_pair

KEYS = ["dynamics=svf", "optimizer.iterations=[3,2,1]"]
PAIRS = 3


@dataclass
class Kind:
    """One way to run: the command, whether the folder holds the results of other settings before, and what was seen."""

    name: str
    words: list[str]
    before: list[str] | None = None
    counts: dict[str, int] = field(default_factory=lambda: {"killed": 0, "ended before": 0, "left without run.json": 0})


def make_inputs(folder: Path) -> None:
    """Pairs of small images and their list."""
    for k in range(PAIRS):
        pair, _, _ = shapes_pair(k, (32, 32))
        for name, image in (("f", pair.fixed), ("m", pair.moving)):
            io.write_image(folder / f"{name}{k}.nii.gz", image.data, image.grid)
    io.write_table(folder / "pairs.csv", [{"id": f"p{k}", "fixed": f"f{k}.nii.gz", "moving": f"m{k}.nii.gz"} for k in range(PAIRS)])


def kinds(folder: Path) -> list[Kind]:
    register = ["register", f"{folder}/f0.nii.gz", f"{folder}/m0.nii.gz", "--overwrite", "--threads", "1"]
    batch = ["batch", f"{folder}/pairs.csv", "--jobs", "2"]
    return [
        Kind("register --overwrite", [*register, *KEYS], [*register, *KEYS, "similarity=ncc", "output.composite=true"]),
        Kind("batch --resume", [*batch, "--resume", *KEYS]),
        Kind("batch --overwrite", [*batch, "--overwrite", *KEYS], [*batch, *KEYS, "similarity=ncc", "output.composite=true"]),
    ]


def start(words: list[str], out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "rdmm", *words, "-o", f"{out}/"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(words: list[str], out: Path) -> float:
    """Run to the end; seconds."""
    begin = time.monotonic()
    assert start(words, out).wait() == 0, words
    return time.monotonic() - begin


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 the command; its workers see it and end."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], "workers outlive their batch"


def results(out: Path) -> dict[str, str]:
    """Checksums of all results; run.json, index.html, tables and logs hold times."""
    skipped = {"run.json", "index.html", "table.csv"}
    files = [p for p in out.rglob("*") if p.is_file() and p.name not in skipped and "logs" not in p.parts]
    return {str(p.relative_to(out)): io.sha256(p) for p in files}


def warps(out: Path) -> set[tuple[str, int]]:
    """The first files of all runs, by name and inode."""
    with contextlib.suppress(FileNotFoundError):
        return {(str(p), p.stat().st_ino) for p in out.rglob("1Warp.nii.gz")}
    return set()


def wrong_claims(out: Path) -> list[str]:
    """Outputs that a run.json of status done lists, and that are missing or differ."""
    wrong = []
    for record in out.rglob("run.json"):
        run = json.loads(record.read_text())
        for name, checksum in run["outputs"].items() if run["status"] == "done" else ():
            path = record.parent / name
            if not path.exists() or io.sha256(path) != checksum:
                wrong.append(str(path))
    return wrong


def try_kind(kind: Kind, folder: Path, moments: int, chance: random.Random) -> Kind:
    """Kill a kind at some moments: half of them at any time, half after the first change among the results."""
    undisturbed, out, old = (folder / f"{name} of {kind.name}" for name in ("undisturbed", "out", "old"))
    seconds = finish(kind.words, undisturbed)
    if kind.before is not None:
        finish(kind.before, old)
    ended = False
    for moment in range(moments):
        if kind.before is not None:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(old, out)
        elif ended:
            shutil.rmtree(out)
        before, process = warps(out), start(kind.words, out)
        while moment % 2 and process.poll() is None and warps(out) == before:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3 if moment % 2 else 0.8 * seconds))
        ended = process.poll() is not None
        kind.counts["ended before" if ended else "killed"] += 1
        kill(process)
        kind.counts["left without run.json"] += any(not (p.parent / "run.json").exists() for p in out.rglob("1Warp.nii.gz"))
        assert not wrong_claims(out), (kind.name, moment, wrong_claims(out))
    finish(kind.words, out)
    assert results(out) == results(undisturbed), {*results(out).items()} ^ {*results(undisturbed).items()}
    assert not wrong_claims(out) and not list(out.rglob(".rdmm-*.part"))
    return kind


def main(moments: int, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    make_inputs(folder)
    for kind in kinds(folder):
        counts = try_kind(kind, folder, -(-moments // len(kinds(folder))), chance).counts
        sys.stdout.write(f"{kind.name}: {counts}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(options.moments, options.folder or Path(temporary), options.seed)
