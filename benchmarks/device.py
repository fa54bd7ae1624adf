"""Seconds on a GPU and on the CPU: one evaluation (energy and gradient) at full resolution, and a whole registration.

    python benchmarks/device.py [--size 192x192x160] [--devices cuda cpu] [--batch 4] [--evaluations] [--compiled]

SVF has the smoother ``fine``, LDDMM and RDMM have ``medium``; 40, 30 and 16 iterations. Settings are written out, so that the script needs
neither Hydra nor nibabel; the pair is synthetic.
``--evaluations`` leaves out the whole registrations, ``--compiled`` adds LNCC compiled by torch.compile.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from textures import textures

from rdmm.dynamics import LDDMM, RDMM, SVF, InitialConditions
from rdmm.optim import LBFGS, Problem
from rdmm.regularizer import MultiGaussian
from rdmm.similarity import LNCC
from rdmm.similarity.lncc import local_correlation
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import on_device
from rdmm.stages import AffineOpt, Chain, Deform

FINE = MultiGaussian([0.01, 0.02, 0.06, 0.16], [0.05, 0.15, 0.35, 0.45], "slip", compressibility=0.25)
MEDIUM = MultiGaussian([0.025, 0.05, 0.12], [0.2, 0.3, 0.5], "slip", compressibility=0.25)
DYNAMICS = {"SVF": SVF(FINE), "LDDMM": LDDMM(MEDIUM), "RDMM": RDMM(MEDIUM)}
OPTIMIZER = LBFGS(iterations=(40, 30, 16))


def problem_of(name: str) -> Problem:
    return Problem(DYNAMICS[name], LNCC(), similarity_weight=0.05, barrier=30.0)


def wait_for(device: torch.device) -> None:
    """Wait until everything that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Median wall seconds, after one run to warm up."""
    function()
    taken = []
    for _ in range(repeats):
        wait_for(device)
        begin = time.perf_counter()
        function()
        wait_for(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def evaluation(problem: Problem, pair: Pair) -> Callable[[], object]:
    """The energy of a small momentum on the shooting grid of the finest level, and its gradient."""
    dynamics, data = problem.dynamics, pair.fixed.data
    zero = InitialConditions(data.new_zeros(len(data), pair.fixed.grid.ndim, *pair.fixed.grid.shape))
    preconditioner = dynamics.preconditioner(zero)
    fraction = dynamics.shooting_fraction(pair.fixed, 0.845, preconditioner)
    ic = dynamics.complete(dynamics.resized(zero, pair.fixed, fraction), pair.source)
    space = dynamics.coordinates(ic, pair.source, True, preconditioner)
    start = space.pack(ic).detach()
    x = start + 1e-4 * torch.sin(torch.arange(len(start), device=start.device))

    def evaluate() -> object:
        y = x.detach().requires_grad_()
        energy, _ = problem.energy(space.unpack(y), pair)
        return torch.autograd.grad(energy.total.sum(), y)

    return evaluate


def stacked(pairs: list[Pair]) -> Pair:
    """Pairs of one grid as one batch."""
    fixed, moving = (torch.cat([getattr(p, side).data for p in pairs]) for side in ("fixed", "moving"))
    return Pair(Image(fixed, pairs[0].fixed.grid), Image(moving, pairs[0].moving.grid))


def peak_gigabytes(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f"{peak:.2f}"


def time_evaluations(pairs: list[Pair], device: torch.device) -> None:
    print("| device | evaluation | s a pair | peak GB |\n|---|---|---|---|", flush=True)
    for count in sorted({1, len(pairs)}):
        batch = on_device(stacked(pairs[:count]), device)
        for name in DYNAMICS:
            taken = seconds(evaluation(problem_of(name), batch), device)
            print(f"| {device.type} | {name}, batch of {count} | {taken / count:.4f} | {peak_gigabytes(device)} |", flush=True)


def time_registrations(pair: Pair, device: torch.device) -> None:
    print("| device | registration | affine s | deform s | iterations | energy | peak GB |\n|---|---|---|---|---|---|---|", flush=True)
    there = on_device(pair, device)
    for name in DYNAMICS:
        result = Chain([AffineOpt(), Deform(problem_of(name), OPTIMIZER)])(there)
        wait_for(device)
        iterations = sum("iteration" in row for row in result.history)
        figures = f"{result.seconds['affine']:.2f} | {result.seconds['deform']:.2f} | {iterations} | {result.energy['total']:.5f}"
        print(f"| {device.type} | {name} | {figures} | {peak_gigabytes(device)} |", flush=True)


def time_compiled(pair: Pair, device: torch.device) -> None:
    """LNCC and its gradient in torch, as it is and compiled."""
    target = pair.fixed.data.to(device)
    moved = pair.moving.data.to(device).requires_grad_()
    begin = time.perf_counter()
    for name, measure in (("as it is", local_correlation), ("compiled", torch.compile(local_correlation))):

        def both(measure: Callable[..., torch.Tensor] = measure) -> object:
            return torch.autograd.grad(measure(moved, target, None, (1, 1, 1)).sum(), moved)

        taken = seconds(both, device)
        print(f"LNCC in torch, {name}: {taken:.4f} s, {time.perf_counter() - begin:.1f} s with its compilation", flush=True)
        begin = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="192x192x160")
    parser.add_argument("--devices", nargs="+", default=["cuda", "cpu"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--evaluations", action="store_true", help="only single evaluations")
    parser.add_argument("--compiled", action="store_true", help="compare torch.compile")
    arguments = parser.parse_args()
    shape = tuple(map(int, arguments.size.split("x")))
    pairs = [Pair(*textures(shape, seed)) for seed in range(arguments.batch)]
    for name in arguments.devices:
        device = torch.device(name)
        time_evaluations(pairs, device)
        if arguments.compiled:
            time_compiled(pairs[0], device)
        if not arguments.evaluations:
            time_registrations(pairs[0], device)


if __name__ == "__main__":
    main()
