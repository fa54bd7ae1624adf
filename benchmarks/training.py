"""Networks: what a training step costs, and how long a learned registration takes beside an optimized one.

    python benchmarks/training.py step [--size 96] [--steps 4] [--threads 2]
    python benchmarks/training.py pairs RUN [--limit 6] [--threads 2]

``step``: RDMM in 3D, one pair both ways, two refinement steps, shooting at half resolution; seconds a step without the first,
and the peak of the process's memory. ``pairs``: RUN is the folder of a run of ``train.py experiment=oasis2d_net``; for each of its models,
on test pairs, the median seconds of the networks alone, of five iterations from what they predict, and of the optimization, one after the
other on each pair, after one pair to warm up; and the similarity term of each.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch

from networks.model import Networks, made
from rdmm.config import build, compose, quoted
from rdmm.registration import run
from rdmm.resources import set_threads
from train.batches import both_ways
from train.main import Job, jobs, objective


def step(size: int, steps: int) -> None:
    keys = ["experiment=images_net", "data=contrasts", f"shape=[{size},{size},{size}]", "affine=none"]
    (job,) = jobs(compose(keys, "train"), keys)
    networks, data = made(job.settings), build(job.config["data"], "data")
    loss, optimizer = objective(job, networks), torch.optim.Adam(networks.parameters())
    seconds = [_one(loss, optimizer, networks, data, i, job) for i in range(steps + 1)][1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{size}^3, RDMM, batch 1 both ways: {statistics.median(seconds):.2f} s a step, peak {peak:.2f} GiB")


def _one(loss, optimizer, networks: Networks, data, number: int, job: Job) -> float:  # type: ignore[no-untyped-def]
    begin = time.perf_counter()
    outcome = loss(both_ways(data.pair(number)), 0, 0, True)
    optimizer.zero_grad()
    outcome.loss.backward()
    optimizer.step()
    return time.perf_counter() - begin


def pairs(folder: Path, limit: int) -> None:
    data = build(compose(["experiment=oasis2d_net"], "train")["data"], "data")
    cases = list(data.held_out("test").values())[: limit + 1]
    print("| model | network s | + 5 iterations s | optimized s | ratio | similarity term: network | + 5 | optimized |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ("svf", "lddmm", "rdmm"):
        weights = f"weights={quoted(str(folder / name / 'best.safetensors'))}"
        ways = [[], ["optimizer=refine"], ["initializer=zero", "optimizer=lbfgs", "stages=single", "affine=opt"]]
        configs = [compose([weights, *w]) for w in ways]
        seconds: list[list[float]] = [[], [], []]
        terms: list[list[float]] = [[], [], []]
        for number, case in enumerate(cases):
            for k, config in enumerate(configs):
                result = run(case(), config)
                if number:
                    seconds[k].append(result.result.seconds["total"])
                    terms[k].append(result.energy["similarity"] / config["similarity_weight"])
        times, means = [statistics.median(s) for s in seconds], [statistics.fmean(t) for t in terms]
        ratio = statistics.median(o / n for n, o in zip(seconds[0], seconds[2], strict=True))
        print(
            f"| {name} | {times[0]:.3f} | {times[1]:.3f} | {times[2]:.2f} | {ratio:.0f} | " + " | ".join(f"{m:.4f}" for m in means) + " |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "pairs"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--limit", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    set_threads(given.threads)
    step(given.size, given.steps) if given.what == "step" else pairs(given.folder, given.limit)
