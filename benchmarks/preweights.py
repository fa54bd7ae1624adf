"""Do pre-weights find where the anatomy is strained? Scenes of rdmm.data.StrainScenes, whose true map is known.

    python benchmarks/preweights.py run OUT.npz [--first 100] [--count 20] [--methods rdmm ...] [--strengths 1 3 10] [--set KEY=VALUE ...]
    python benchmarks/preweights.py run OUT.npz [--first 100] [--count 20] --models NAME=FILE ...
    python benchmarks/preweights.py table PART.npz [PART.npz ...] [--figure docs/figures/preweights.png]

``run`` registers each scene by SVF, LDDMM and RDMM with optimized pre-weights (settings of the experiment ``strain``) at each strength, the
weight of the similarity; with ``--models`` by these networks alone. It keeps the errors and sigma(x) at t = 1. ``table`` prints the means
of all parts; errors where maps are equally smooth; and the correlation of -sigma(x) with the true strain, beside that of control maps: of
the other scenes, and turned and mirrored. Correlations are over the voxels of the body. The true strain is |log F^T F| / 2 smoothed by .05,
the width of the weights' own Gaussian.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from eval.fronts import Front, at_level
from rdmm.data import StrainScenes
from rdmm.data.inputs import Inputs
from rdmm.data.synthetic.strain import strain
from rdmm.kernels.available import set_threads
from rdmm.registration.entry import compose_settings, run
from rdmm.spatial.gaussian import gaussian

Row = dict[str, Any]

METHODS: Mapping[str, Sequence[str]] = {
    "svf": ["dynamics=svf", "penalty=none"],
    "lddmm": ["dynamics=lddmm", "penalty=none"],
    "rdmm": [],
}

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

STRAIN_WIDTH = 0.05
"""The Gaussian of the true strain, in domain units."""


def optimized(methods: Sequence[str], strengths: Sequence[float], changes: Sequence[str]) -> dict[str, list[str]]:
    """Settings by name: each method at each strength."""
    return {f"{m} {s:g}": ["experiment=strain", *METHODS[m], f"similarity_weight={s}", *changes] for m in methods for s in strengths}


def learned(models: Sequence[str]) -> dict[str, list[str]]:
    """Settings by name: each network."""
    return {name: [f"weights={path}", "affine=none"] for name, path in (m.split("=", 1) for m in models)}


def true_strain(inputs: Inputs) -> np.ndarray:
    """The smoothed strain of the true map on the fixed grid (*s)."""
    assert inputs.truth is not None
    grid = inputs.pair.fixed.grid
    return gaussian(strain(inputs.truth.displacement, grid), STRAIN_WIDTH, grid)[0, 0].numpy()


def run_scenes(out: Path, first: int, count: int, how: Mapping[str, Sequence[str]]) -> None:
    """Register the scenes; rows as JSON, and images by scene, in ``out``."""
    rows: list[Row] = []
    images: dict[str, np.ndarray] = {}
    settings = {name: compose_settings(own) for name, own in how.items()}
    for scene, read in StrainScenes(count=count, first=first).cases().items():
        inputs = read()
        assert inputs.truth is not None
        regions = {k: v[0, 0].numpy() > 0 for k, v in inputs.truth.regions.items()}
        body = regions["organ"] | regions["rest"]
        seen = {"fixed": inputs.pair.fixed.data[0, 0].numpy(), "moving": inputs.pair.moving.data[0, 0].numpy()}
        images |= {f"{scene}/{k}": v for k, v in {"body": body, "strain": true_strain(inputs), **seen}.items()}
        for name, own in settings.items():
            found = run(inputs, own)
            error = found.map_error
            assert error is not None
            measured = {k: v for k, v in found.metrics.items() if isinstance(v, int | float)}
            rows.append({"scene": scene, "method": name, "error_body_mm": float(error[0, 0].numpy()[body].mean()), **measured})
            rows[-1] |= {"energy": found.energy["velocity"], "seconds": found.result.seconds["total"]}
            sigmas = found.sigmas()
            if sigmas is not None:
                images[f"{scene}/{name}"] = sigmas[1][0, 0].numpy()
            print(scene, name, f"{rows[-1]['error_body_mm']:.4f}", flush=True)
        np.savez_compressed(out, rows=json.dumps(rows), **images)  # after each scene: a run that is cut off keeps what it has


def correlation(a: np.ndarray, b: np.ndarray, body: np.ndarray) -> float:
    """Pearson's correlation over the body; 0 for a map without any variation."""
    a, b = a[body], b[body]
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 1e-6 * abs(a.mean()) else 0.0


def turned(x: np.ndarray) -> list[np.ndarray]:
    """The seven other maps of the square's symmetries."""
    return [np.rot90(y, k) for y, turns in ((x, (1, 2, 3)), (x[::-1], (0, 1, 2, 3))) for k in turns]


def correlations(images: Mapping[str, np.ndarray], method: str) -> list[dict[str, float]]:
    """For each scene: the correlation of -sigma of a method with the true strain, and of the control maps."""
    maps = {key.split("/")[0]: -image for key, image in images.items() if key.split("/")[1] == method}
    mean = np.mean(list(maps.values()), 0)
    out = []
    for scene, own in maps.items():
        body, target = images[f"{scene}/body"], images[f"{scene}/strain"]
        others = [correlation(x, target, body) for other, x in maps.items() if other != scene]
        out.append(
            {
                "own": correlation(own, target, body),
                "others": fmean(others) if others else float("nan"),
                "turned": fmean(correlation(x, target, body) for x in turned(own)),
                "mean map": correlation(mean, target, body),
            }
        )
    return out


MEASURES = (
    "error_body_mm",
    "error_organ_mm",
    "error_rest_mm",
    "dice",
    "sd_log_jacobian",
    "sd_log_jacobian_outside",
    "energy",
    "energy_drift",
    "folds_percent",
    "seconds",
)


def means(rows: Sequence[Row]) -> str:
    """A table of the methods: means over the scenes."""
    lines = ["| method | n | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 2) + "|"]
    for method in dict.fromkeys(r["method"] for r in rows):
        group = [r for r in rows if r["method"] == method]
        numbers = [[r[k] for r in group if k in r] for k in MEASURES]
        lines.append(f"| {method} | {len(group)} | " + " | ".join(f"{fmean(x):.4g}" if x else "" for x in numbers) + " |")
    return "\n".join(lines)


def equally_smooth(front: Front, level: float) -> float:
    """The least error of a front (SDlogJ, error) at SDlogJ ``level``: that of its smoothest map if all are rougher, its least if all are
    smoother."""
    found = at_level(front, level)
    if math.isfinite(found):
        return found
    return min(front)[1] if min(x for x, _ in front) > level else min(y for _, y in front)


def at_equal_smoothness(rows: Sequence[Row], method: str, baseline: str, measure: str) -> str:
    """A line for each strength of a method: its mean SDlogJ and ``measure``; and those of the baseline where its SDlogJ is the same in
    each scene, and at the strength that is best for it, with the scenes in which the method is lower and Wilcoxon's p. Scenes that lack a
    strength are left out."""
    from scipy.stats import wilcoxon

    compared = [r for r in rows if r["method"].split()[0] in (method, baseline)]
    names = dict.fromkeys(r["method"] for r in compared)
    scenes = set.intersection(*({r["scene"] for r in compared if r["method"] == name} for name in names))
    family = {name: [r for r in compared if r["method"] == name and r["scene"] in scenes] for name in names}
    theirs = [rows_ for name, rows_ in family.items() if name.split()[0] == baseline]
    best = min(theirs, key=lambda rows_: fmean(r[measure] for r in rows_))
    title = f"{measure} of {method} | {baseline}, as smooth | lower in | p | {baseline}, best | its SDlogJ | lower in | p"
    lines = [f"| similarity_weight | SDlogJ | {title} |", "|---" * 11 + "|"]
    for name, own in ((n, r) for n, r in family.items() if n.split()[0] == method):
        cells = [f"{fmean(r[k] for r in own):.4g}" for k in ("sd_log_jacobian", measure)]
        fronts = [[(r["sd_log_jacobian"], r[measure]) for rows_ in theirs for r in rows_ if r["scene"] == o["scene"]] for o in own]
        smooth = [equally_smooth(front, o["sd_log_jacobian"]) for front, o in zip(fronts, own, strict=True)]
        at_best = [next(r for r in best if r["scene"] == o["scene"]) for o in own]
        for errors, more in ((smooth, ()), ([r[measure] for r in at_best], (fmean(r["sd_log_jacobian"] for r in at_best),))):
            differences = [o[measure] - e for o, e in zip(own, errors, strict=True)]
            cells += [f"{fmean(errors):.4g}", *(f"{m:.4g}" for m in more), f"{sum(d < 0 for d in differences)} of {len(own)}"]
            cells.append(f"{wilcoxon(differences).pvalue:.2g}")
        lines.append(f"| {name.split()[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def correlation_table(images: Mapping[str, np.ndarray]) -> str:
    """Mean correlations of every method that has a sigma."""
    lines = ["| method | n | own | other scenes | turned, mirrored | mean map | lowest own |", "|---" * 7 + "|"]
    for method in dict.fromkeys(k.split("/")[1] for k in images if k.split("/")[1] not in ("body", "strain", "fixed", "moving")):
        found = correlations(images, method)
        cells = [f"{fmean(c[k] for c in found):.3f}" for k in ("own", "others", "turned", "mean map")]
        lines.append(f"| {method} | {len(found)} | " + " | ".join(cells) + f" | {min(c['own'] for c in found):.3f} |")
    return "\n".join(lines)


def draw(images: Mapping[str, np.ndarray], method: str, out: Path, scenes: int = 3) -> None:
    """Typical scenes: both images, the true strain, sigma(x), and sigma(x) of the next scene, the control."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(k.split("/")[0] for k in images))
    figure, axes = plt.subplots(scenes, 5, figsize=(10, 2.1 * scenes), layout="constrained", squeeze=False)
    sigmas = [images[f"{n}/{method}"] for n in [*names, names[0]][: scenes + 1]]
    low, high = min(s.min() for s in sigmas), max(s.max() for s in sigmas)
    for i, name in enumerate(names[:scenes]):
        r = correlations({k: v for k, v in images.items() if k.startswith(name)}, method)[0]["own"]
        control = correlation(-sigmas[i + 1], images[f"{name}/strain"], images[f"{name}/body"])
        shown = [images[f"{name}/moving"], images[f"{name}/fixed"], images[f"{name}/strain"], sigmas[i], sigmas[i + 1]]
        titles = ["moving", "fixed", "true strain", f"sigma(x), r = {r:.2f}", f"of the next scene, r = {control:.2f}"]
        for j, (image, title) in enumerate(zip(shown, titles, strict=True)):
            limits = {"vmin": low, "vmax": high} if j > 2 else {}
            drawn = axes[i, j].imshow(image.T, origin="lower", cmap="gray" if j < 2 else "viridis", **limits)
            axes[i, j].set_title(title, fontsize=9)
            axes[i, j].set(xticks=[], yticks=[])
            if j in (2, 4):
                figure.colorbar(drawn, ax=axes[i, j], fraction=0.046, label="mm" if j == 4 else None)
    figure.savefig(out, dpi=150, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("out", type=Path)
    one.add_argument("--first", type=int, default=100)
    one.add_argument("--count", type=int, default=20)
    one.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    one.add_argument("--methods", nargs="+", default=tuple(METHODS), choices=tuple(METHODS))
    one.add_argument("--set", nargs="+", default=(), metavar="KEY=VALUE", help="further settings of the methods")
    one.add_argument("--models", nargs="+", default=(), metavar="NAME=FILE")
    two = commands.add_parser("table")
    two.add_argument("parts", type=Path, nargs="+")
    two.add_argument("--figure", type=Path)
    two.add_argument("--drawn", default="rdmm 10", help="method that is drawn")
    args = parser.parse_args()
    set_threads(1)
    torch.manual_seed(0)
    if args.command == "run":
        how = learned(args.models) if args.models else optimized(args.methods, args.strengths, args.set)
        run_scenes(args.out, args.first, args.count, how)
        return
    rows, images = [], {}
    for part in args.parts:
        with np.load(part) as stored:
            rows += json.loads(str(stored["rows"]))
            images |= {k: stored[k] for k in stored.files if k != "rows"}
    print(means(rows), correlation_table(images), sep="\n\n")
    if {"lddmm", "rdmm"} <= {r["method"].split()[0] for r in rows if " " in r["method"]}:
        for measure in ("error_body_mm", "error_organ_mm", "error_rest_mm"):
            print("", at_equal_smoothness(rows, "rdmm", "lddmm", measure), sep="\n")
    if args.figure:
        draw(images, args.drawn, args.figure)


if __name__ == "__main__":
    main()
