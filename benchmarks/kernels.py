"""Seconds of one shooting and of one similarity: forward, and forward + backward, for SVF, LDDMM and RDMM.

    python benchmarks/kernels.py [--sizes 64 96 128] [--threads 2] [--repeats 3]

Prints a Markdown table of medians over the repeats. RDMM has the paper's five Gaussians. The solvers rk4 (20 steps) and dopri5
(default tolerances), both with the reverse-time adjoint, are those with which the authors' code was measured (dopri5 at 1e-5 of each
entry); the third is rdmm's semi-Lagrangian method.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from rdmm import LDDMM, RDMM, SVF, Grid, Image, InitialConditions, Integrator, MultiGaussian
from rdmm.kernels.available import set_threads
from rdmm.similarity import LNCC, NCC, NMI, SSD, MultiKernelLNCC

PAPER_SMOOTHER = MultiGaussian([0.05, 0.1, 0.15, 0.2, 0.25], [0.067, 0.133, 0.2, 0.267, 0.333])
SOLVERS = {
    "rk4, 20 steps": Integrator("rk4", steps=20),
    "dopri5": Integrator("dopri5"),
    "semi-Lagrangian, 8 steps": Integrator("semi_lagrangian", steps=8),
}


def make_initial_conditions(n: int, model: str) -> InitialConditions:
    """A smooth momentum that moves points by about 5 % of the domain, and pre-weights that change from one side to the other."""
    torch.manual_seed(0)
    grid = Grid.unit((n, n, n))
    x = grid.identity(torch.zeros(1))
    bump = torch.exp(-((x - 0.5) ** 2).sum(1, keepdim=True) / 0.06)
    momentum = torch.cat([torch.sin(6.3 * (x[:, i : i + 1] + x[:, (i + 1) % 3 :][:, :1])) * bump for i in range(3)], 1) * 0.3
    if model != "RDMM":
        return InitialConditions(momentum)
    side = torch.sigmoid((x[:, :1] - 0.5) / 0.1)
    table = torch.tensor([[0.3, 0.3, 0.2, 0.1, 0.1], [0.0, 0.1, 0.2, 0.3, 0.4]])
    squares = side * table[0].view(1, 5, 1, 1, 1) + (1 - side) * table[1].view(1, 5, 1, 1, 1)
    return InitialConditions(momentum, squares.sqrt())


def measure_seconds(function, repeats: int) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Median wall and CPU seconds, after one run to warm up."""
    function()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="part of a row's name")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, median of {arguments.repeats}\n")
    print("| size | what | forward s | forward + backward s | CPU s |\n|---|---|---|---|---|")
    for n in arguments.sizes:
        image = Image(torch.rand(1, 1, n, n, n), Grid.unit((n, n, n)))
        for name, dynamics in (("SVF", SVF), ("LDDMM", LDDMM), ("RDMM", RDMM)):
            for solver, integrator in SOLVERS.items():
                if arguments.only not in f"{name} {solver}":
                    continue
                model, ic = dynamics(PAPER_SMOOTHER, integrator), make_initial_conditions(n, name)
                leaves = [t.requires_grad_() for t in (ic.momentum, ic.weights) if t is not None]

                def forward(model=model, ic=ic, image=image):  # type: ignore[no-untyped-def]
                    with torch.no_grad():
                        model.shoot(ic, image)

                def both(model=model, ic=ic, image=image, leaves=leaves):  # type: ignore[no-untyped-def]
                    torch.autograd.grad(model.shoot(ic, image).displacement.square().sum(), leaves)

                one, (two, cpu) = measure_seconds(forward, arguments.repeats)[0], measure_seconds(both, arguments.repeats)
                print(f"| {n} | {name}, {solver} | {one:.3f} | {two:.3f} | {cpu:.2f} |", flush=True)
        for similarity in (SSD(), NCC(), NMI(), LNCC(5), MultiKernelLNCC()):
            name = type(similarity).__name__
            if arguments.only not in name:
                continue
            moved = Image(torch.rand(1, 1, n, n, n).requires_grad_(), image.grid)

            def value(similarity=similarity, moved=moved, image=image):  # type: ignore[no-untyped-def]
                with torch.no_grad():
                    similarity(moved, image)

            def gradient(similarity=similarity, moved=moved, image=image):  # type: ignore[no-untyped-def]
                torch.autograd.grad(similarity(moved, image).sum(), moved.data)

            one, (two, cpu) = measure_seconds(value, arguments.repeats)[0], measure_seconds(gradient, arguments.repeats)
            print(f"| {n} | {name} | {one:.3f} | {two:.3f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
