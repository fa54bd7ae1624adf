"""Networks: seconds of a training step, and of a learned registration against an optimized one.

    python benchmarks/training.py step [--size 96] [--steps 4] [--threads 2]
    python benchmarks/training.py pairs RUN [--limit 6] [--threads 2]
    python benchmarks/training.py sigma RUN --out PICTURE [--limit 6]

``step``: RDMM in 3D, one pair in both directions, two refinement steps, shooting at half resolution. Prints the median seconds of a
step, without the first one, and the peak memory of the process.
``pairs``: RUN is the folder of a run of ``train.py experiment=oasis2d_net``. For each of its models, three methods register the test
pairs: the networks alone, five iterations from their prediction, and the optimization. Prints median seconds, without the first pair, and
the mean similarity term of each.
``sigma``: RUN is the folder of a run of ``train.py experiment=synthetic2d_net``. Prints the mean sigma(x) that RDMM's network predicts,
within two pixels of the moving objects' edges and elsewhere, and writes a picture.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from networks.model import Networks, build_networks
from rdmm.config.build import build
from rdmm.config.compose import compose, quoted
from rdmm.kernels.available import set_threads
from rdmm.registration.entry import compose_settings, run
from train.batches import both_ways
from train.plan import TrainingPlan, build_objective, plan_trainings


def time_steps(size: int, steps: int) -> None:
    keys = ["experiment=images_net", "data=contrasts", f"shape=[{size},{size},{size}]", "affine=none"]
    (job,) = plan_trainings(compose(keys, "train"), keys)
    networks, data = build_networks(job.settings), build(job.config["data"], "data")
    loss, optimizer = build_objective(job, networks), torch.optim.Adam(networks.parameters())
    seconds = [_take_step(loss, optimizer, networks, data, i, job) for i in range(steps + 1)][1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{size}^3, RDMM, batch 1 both ways: {statistics.median(seconds):.2f} s a step, peak {peak:.2f} GiB")


def _take_step(loss, optimizer, networks: Networks, data, number: int, job: TrainingPlan) -> float:  # type: ignore[no-untyped-def]
    begin = time.perf_counter()
    outcome = loss(both_ways(data.pair(number)), 0, 0, True)
    optimizer.zero_grad()
    outcome.loss.backward()
    optimizer.step()
    return time.perf_counter() - begin


def compare_on_pairs(folder: Path, limit: int) -> None:
    data = build(compose(["experiment=oasis2d_net"], "train")["data"], "data")
    cases = list(data.held_out("test").values())[: limit + 1]
    print("| model | network s | + 5 iterations s | optimized s | ratio | similarity term: network | + 5 | optimized |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ("svf", "lddmm", "rdmm"):
        weights = f"weights={quoted(str(folder / name / 'best.safetensors'))}"
        ways = [[], ["optimizer=refine"], ["initializer=zero", "optimizer=lbfgs", "stages=single", "affine=opt"]]
        configs = [compose_settings([weights, *w]) for w in ways]
        seconds: list[list[float]] = [[], [], []]
        terms: list[list[float]] = [[], [], []]
        for number, case in enumerate(cases):
            for k, config in enumerate(configs):
                result = run(case(), config)
                if number:
                    seconds[k].append(result.result.seconds["total"])
                    terms[k].append(result.energy["similarity"] / config.config["similarity_weight"])
        times, means = [statistics.median(s) for s in seconds], [statistics.fmean(t) for t in terms]
        ratio = statistics.median(o / n for n, o in zip(seconds[0], seconds[2], strict=True))
        print(
            f"| {name} | {times[0]:.3f} | {times[1]:.3f} | {times[2]:.2f} | {ratio:.0f} | " + " | ".join(f"{m:.4f}" for m in means) + " |"
        )


def measure_sigma(folder: Path, limit: int, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = build(compose(["experiment=synthetic2d_net"], "train")["data"], "data")
    config = compose_settings(
        [f"weights={quoted(str(folder / 'rdmm' / 'best.safetensors'))}", "affine=none", "stages=single"]
    )  # the first step
    figure, axes = plt.subplots(3, 4, figsize=(10, 7.5))
    means = []
    for number, case in enumerate(list(data.held_out("test").values())[:limit]):
        inputs = case()
        result = run(inputs, config)
        width = result.sigmas()[0]  # type: ignore[index]
        labels = inputs.moving_labels.data
        near = F.max_pool2d(labels, 5, 1, 2) != -F.max_pool2d(-labels, 5, 1, 2)
        means.append((float(width[near].mean()), float(width[~near].mean())))
        if number < 4:
            for row, (x, colors) in enumerate(((inputs.pair.moving.data, "gray"), (inputs.pair.fixed.data, "gray"), (width, "viridis"))):
                shown = axes[row, number].imshow(x[0, 0].T, cmap=colors, origin="lower")
                axes[row, number].set_axis_off()
            figure.colorbar(shown, ax=axes[2, number], fraction=0.046)
    for row, title in enumerate(("moving", "fixed", "predicted sigma(x), mm")):
        axes[row, 0].set_title(title, fontsize=10, loc="left")
    figure.tight_layout()
    figure.savefig(out, dpi=80)
    edges, rest = (statistics.fmean(m[i] for m in means) for i in (0, 1))
    smaller = sum(a < b for a, b in means)
    print(f"mean sigma(x) within 2 pixels of edges {edges:.3f} mm, elsewhere {rest:.3f} mm; smaller in {smaller} of {len(means)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "pairs", "sigma"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--limit", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("sigma.png"))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    set_threads(given.threads)
    if given.what == "step":
        time_steps(given.size, given.steps)
    elif given.what == "pairs":
        compare_on_pairs(given.folder, given.limit)
    else:
        measure_sigma(given.folder, given.limit, given.out)
