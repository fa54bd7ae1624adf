"""Transport compared with geomloss and OTT-JAX: divergence and gradient on grids, with a blur of one voxel, and between points.

    python benchmarks/transport.py grid [--size 64] [--threads 2] [--peers geomloss ott] [--ott PYTHON]
    python benchmarks/transport.py points [--counts 10000 50000] [--blur .02] [--peers geomloss]
    python benchmarks/transport.py knee [--data ../shared/data] [--picture knee.png]

``points``: one cloud is uniform in a box, the other skewed in another box, both of edge .6.
``knee``: the voxels of two knees' cartilage, about 52,000 and 35,000 (every third), and the displacement that the gradient suggests.
Prints Markdown tables. The marginal error is |pi 1 - a| (L1; a has mass 1) of the plan of the resulting potentials; one function
computes it for all solvers. geomloss 0.3.1 has no tolerance: its ``scaling`` determines the error. ``--ott`` is a Python interpreter
with ott-jax, this one or another. Memory is the peak of torch's tensors, in volumes of float32, with a copy of one image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from rdmm import Grid, Image, Measure
from rdmm.io import read_labels
from rdmm.kernels.available import set_threads
from rdmm.runtime.resources import peak_memory, reset_peak_memory
from rdmm.similarity import GridSinkhorn, SinkhornDivergence
from rdmm.spatial.measure import voxels
from rdmm.transport import softmin
from rdmm.transport.softmin import LOG_ZERO, log_convolve
from rdmm.types import Tensor


def make_blobs(x: Tensor, seed: int) -> Tensor:
    """Six Gaussian blobs of several sizes over a background of 1e-4."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.full_like(x[:, :1], 1e-4)
    for _ in range(6):
        center = 0.2 + 0.6 * torch.rand(1, 3, 1, 1, 1, generator=generator)
        sigma = 0.05 + 0.07 * float(torch.rand(1, generator=generator))
        out = out + torch.exp(-((x - center) ** 2).sum(1, keepdim=True) / (2 * sigma**2))
    return out


def make_ellipsoid(x: Tensor, center: list[float], axes: list[float]) -> Tensor:
    c, r = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (center, axes))
    return (((x - c) / r).square().sum(1, keepdim=True) < 1).float()


def make_problems(n: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    x = Grid.unit((n, n, n)).identity(torch.zeros(1))
    yield "blobs", make_blobs(x, 0), make_blobs(x, 1)
    yield "masks", make_ellipsoid(x, [0.4, 0.45, 0.5], [0.25, 0.25, 0.25]), make_ellipsoid(x, [0.55, 0.5, 0.5], [0.3, 0.35, 0.2])


def marginal_error(a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float, alpha: float) -> float:
    """The larger of |pi 1 - a| and |pi^T 1 - b|; the potentials f and g, (1, *s), are in the unit of eps."""
    errors = []
    for p, q, u, v in ((a, b, f, g), (b, a, g, f)):
        logs = torch.where(q > 0, q.clamp_min(1e-37).log(), LOG_ZERO)
        plan = p * torch.exp((u / eps + log_convolve(logs + v / eps, [alpha] * 3)).clamp_max(50))
        errors.append(float((plan - p).abs().sum() / p.sum()))
    return max(errors)


def measure_peak_memory(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of ``run``, and the peak of bytes in tensors, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        out = run()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    total = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return out, highest


def measure_seconds(run: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def run_rdmm(a: Tensor, b: Tensor, n: int, tolerance: float, repeats: int) -> tuple[float, float, float, float]:
    grid = Grid.unit((n, n, n))
    similarity = GridSinkhorn(blur=1 / (n - 1), tolerance=tolerance)

    def run() -> float:
        x = a.clone().requires_grad_()
        value = similarity(Image(x, grid), Image(b, grid))
        torch.autograd.grad(value.sum(), x)
        return float(value.detach())

    value = run()
    _, memory = measure_peak_memory(run)
    found = similarity.potentials(Image(a, grid), Image(b, grid))
    error = marginal_error((a / a.sum())[0], (b / b.sum())[0], found.f, found.g, similarity.blur**2, 1.0)
    return measure_seconds(run, repeats), error, value, memory / (4 * n**3)


def run_geomloss(a: Tensor, b: Tensor, n: int, scaling: float) -> tuple[float, float, float, float]:
    from geomloss._legacy.sinkhorn_images import sinkhorn_divergence

    a, b = (a / a.sum()), (b / b.sum())

    def run() -> float:
        x = a.clone().requires_grad_()
        value = sinkhorn_divergence(x, b, p=2, blur=1 / n, scaling=scaling)
        torch.autograd.grad(value.sum(), x)
        return float(value.detach())

    begin = time.perf_counter()
    value = run()
    seconds = time.perf_counter() - begin
    f, g = sinkhorn_divergence(a, b, p=2, blur=1 / n, scaling=scaling, debias=False, potentials=True)
    return seconds, marginal_error(a[0], b[0], f[0], g[0], 1 / n**2, 1.0), value, float("nan")


OTT_PROGRAM = """
import json, sys, time
import jax, jax.numpy as jnp
from ott.geometry import grid, epsilon_scheduler
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
import numpy as np
n, threshold, file = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
data = np.load(file)
a, b = (jnp.asarray(data[k].ravel() / data[k].sum()) for k in "ab")
h = 1 / (n - 1)
schedule = epsilon_scheduler.Epsilon(target=2 * h * h, init=0.25 / (2 * h * h), decay=0.8)
geometry = grid.Grid(x=[jnp.linspace(0, 1, n)] * 3, epsilon=schedule)
solver = sinkhorn.Sinkhorn(threshold=threshold, max_iterations=400)
solve = jax.jit(lambda a, b: (lambda out: (out.f, out.g, out.reg_ot_cost))(solver(linear_problem.LinearProblem(geometry, a=a, b=b))))
def divergence():
    (f, g, w), (p, _, v), (_, q, u) = solve(a, b), solve(a, a), solve(b, b)
    jax.block_until_ready((f - p, g - q))
    return f, g, float(w - v / 2 - u / 2)
divergence()
begin = time.perf_counter(); f, g, value = divergence(); seconds = time.perf_counter() - begin
np.savez(file, f=np.asarray(f).reshape(n, n, n), g=np.asarray(g).reshape(n, n, n))
print(json.dumps({"seconds": seconds, "value": value / 2}))
"""


def run_ott(python: str, a: Tensor, b: Tensor, n: int, threshold: float) -> tuple[float, float, float, float]:

    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "problem.npz")
        np.savez(file, a=a[0, 0].numpy(), b=b[0, 0].numpy())
        out = subprocess.run([python, "-c", OTT_PROGRAM, str(n), str(threshold), file], capture_output=True, text=True, check=True)
        result = json.loads(out.stdout.splitlines()[-1])
        found = np.load(file)
        f, g = (torch.from_numpy(found[k])[None] for k in "fg")
    p, q = (a / a.sum())[0], (b / b.sum())[0]
    eps = 2 / (n - 1) ** 2  # OTT's plan is exp((f + g - |x - y|^2) / eps), without the marginals
    logs = [torch.where(m > 0, m.clamp_min(1e-37).log() * eps, 0) for m in (p, q)]
    return result["seconds"], marginal_error(p, q, f - logs[0], g - logs[1], eps, 1.0), result["value"], float("nan")


def compare_on_grids(arguments: argparse.Namespace) -> None:
    n = arguments.size
    print(f"| {n}^3, blur of one voxel | solver | seconds | marginal error % | S | memory, volumes |\n|---|---|---|---|---|---|")

    def row(problem: str, name: str, result: tuple[float, float, float, float]) -> None:
        seconds, error, value, memory = result
        print(f"| {problem} | {name} | {seconds:.3g} | {100 * error:.2g} | {value:.5f} | {memory:.0f} |", flush=True)

    for problem, a, b in make_problems(n):
        for tolerance in (0.03, 0.01):
            row(problem, f"rdmm, tolerance {tolerance}", run_rdmm(a, b, n, tolerance, arguments.repeats))
        compiled, softmin.has_numba = softmin.has_numba, lambda: False  # type: ignore[assignment]
        row(problem, "rdmm, plain torch, tolerance 0.03", run_rdmm(a, b, n, 0.03, 1))
        softmin.has_numba = compiled
        for scaling in arguments.scalings if "geomloss" in arguments.peers else ():
            row(problem, f"geomloss, scaling {scaling}", run_geomloss(a, b, n, scaling))
        if "ott" in arguments.peers:
            row(problem, "OTT-JAX, threshold 0.05", run_ott(arguments.ott, a, b, n, 0.05))


def compare_on_points(arguments: argparse.Namespace) -> None:
    """Divergence and gradient. Seconds: the median of the repeats, and the mean of the processors' time, on which others have no
    influence. Memory: what the process needs beyond its start."""
    blur = arguments.blur
    print(f"| points, blur {blur:g} | solver | seconds | CPU s | peak MB | S |\n|---|---|---|---|---|---|")
    solvers: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"rdmm, tolerance 0.03": partial(run_rdmm_on_points, blur=blur)}
    for backend in ("multiscale", "online") if "geomloss" in arguments.peers else ():
        solvers[f"geomloss {backend}, scaling .5"] = partial(run_geomloss_on_points, blur=blur, backend=backend)
    for name, solve in solvers.items():
        solve(*make_clouds(2000))  # compiles
        for n in arguments.counts:
            if "online" in name and n > LARGEST_ONLINE:
                continue
            x, y = make_clouds(n)
            reset_peak_memory()
            before, begin, values = peak_memory(), time.process_time(), []
            seconds = measure_seconds(lambda: values.append(solve(x, y)), arguments.repeats)  # noqa: B023
            busy = (time.process_time() - begin) / len(values)
            memory = (peak_memory() - before) / 2**20
            print(f"| {n:,} to {n:,} | {name} | {seconds:.3g} | {busy:.3g} | {memory:.0f} | {float(values[0]):.5f} |", flush=True)


LARGEST_ONLINE = 20_000
"""Most points for sums over all pairs, which take n^2 time."""


def make_clouds(n: int) -> tuple[Tensor, Tensor]:
    """Two clouds (1, 3, n): one uniform in a box, the other skewed in another box."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, n, generator=generator) * 0.6 + 0.1, torch.rand(1, 3, n, generator=generator) ** 1.5 * 0.6 + 0.3


def run_rdmm_on_points(x: Tensor, y: Tensor, blur: float) -> Tensor:
    z = x.clone().requires_grad_()
    value = SinkhornDivergence(blur, tolerance=0.03)(Measure(z), Measure(y))
    torch.autograd.grad(value.sum(), z)
    return value.detach()


def run_geomloss_on_points(x: Tensor, y: Tensor, blur: float, backend: str) -> Tensor:
    from geomloss import SamplesLoss

    z = x[0].T.contiguous().requires_grad_()
    value = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.5, backend=backend)(z, y[0].T.contiguous())
    torch.autograd.grad(value, z)
    return value.detach()


def compare_knees(arguments: argparse.Namespace) -> None:
    """The gradient of the divergence with respect to the positions of all voxels of one knee."""
    import matplotlib.pyplot as plt

    clouds = []
    for name in "ab":
        labels = read_labels(f"{arguments.data}/knee_mri/oai_cartilage_{name}.nii.gz")
        whole = voxels((labels.data == 1).float(), labels.grid)
        middle = whole.points.mean(2, keepdim=True)
        clouds.append((whole.points - middle)[:, :, ::3] / 100)
    a, b = clouds
    x, similarity = a.clone().requires_grad_(), SinkhornDivergence(0.02, tolerance=0.03)
    similarity(Measure(x), Measure(b))
    begin = time.perf_counter()
    value = similarity(Measure(x), Measure(b))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    seconds = time.perf_counter() - begin
    v = -gradient * x.shape[2]
    moves = 100 * float(v.norm(dim=1).mean())
    counts = f"{a.shape[2]} to {b.shape[2]} voxels"
    print(f"knee cartilage, {counts}: {seconds:.2f} s, S = {float(value.detach()):.6f}, mean |v| {moves:.2f} mm")
    figure, axes = plt.subplots(1, 2, figsize=(13, 6))
    for panel, (i, j) in zip(axes, ((0, 1), (1, 2)), strict=True):
        panel.scatter(*(100 * b[0, [i, j], ::5]), s=0.3, c="black", label="fixed")
        panel.scatter(*(100 * a[0, [i, j], ::5]), s=0.3, c="tab:red", label="moving")
        some, arrows = slice(None, None, 60), {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 1e-3}
        panel.quiver(*(100 * a[0, [i, j], some]), *(100 * v[0, [i, j], some]), color="tab:blue", **arrows)
        panel.set_aspect("equal")
        panel.set_title(f"{'xyz'[i]}{'xyz'[j]} plane, mm: moving, fixed, minus gradient")
    figure.savefig(arguments.picture, dpi=80, bbox_inches="tight")
    print(arguments.picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["grid", "points", "knee"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=[])
    parser.add_argument("--scalings", nargs="*", type=float, default=[0.9, 0.97])
    parser.add_argument("--ott", default="python")
    parser.add_argument("--counts", nargs="*", type=int, default=[10_000, 50_000])
    parser.add_argument("--blur", type=float, default=0.02)
    parser.add_argument("--data", default=os.environ.get("RDMM_DATA", "../shared/data"))
    parser.add_argument("--picture", default="knee.png")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    {"grid": compare_on_grids, "points": compare_on_points, "knee": compare_knees}[arguments.what](arguments)


if __name__ == "__main__":
    main()
