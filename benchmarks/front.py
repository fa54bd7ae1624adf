"""The front: overlap of labels, or landmark error, against the roughness of the map, over the strength of the regularizer.

    python benchmarks/front.py OUT [--data slices ...] [--methods greedy ...] [--strengths S ...] [--pairs N] [--threads 2]
                               [--set KEY=VALUE ...]

Overlap can be bought with roughness, so one number of each is no comparison: methods are compared at equal SDlogJ inside the subject.
Each strength has its own process. OUT/front.jsonl gets a line for each run; runs that it holds are not repeated, so that a long comparison
can be made in parts. The means over the pairs are printed and drawn, OUT/front_<data>.png. ``--data slices --methods svf`` takes minutes.

The data are in the folder that the variable RDMM_DATA names.

All results are judged by one evaluator (``Registration.metrics``): nearest-neighbor labels, central differences. The subject is where the
fixed labels are, on livers the foreground. Strengths: of rdmm, factors of the data's similarity_weight; of greedy its option -s; of SyN
flow_sigma,total_sigma. greedy and SyN start with their own affine stages. CPU seconds are those of the registration, affine included,
without the start of Python and the evaluation.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from pairs import DATA, KNEE_SETTINGS, ROOT, numbers, rows_of_worker

from eval.study import External
from rdmm import convert
from rdmm.data.inputs import Inputs
from rdmm.data.studies.brains import Brains, BrainSlices
from rdmm.data.studies.knees import Knees
from rdmm.data.studies.livers import Livers
from rdmm.io.exchange import Image
from rdmm.kernels.available import set_threads
from rdmm.registration.entry import compose_settings, run
from rdmm.registration.images import Registration

Row = dict[str, Any]

ROUGHNESS = "sd_log_jacobian_subject"


@dataclass(frozen=True)
class DataSet:
    """Pairs, and what each tool needs to know about their kind.

    Args:
        cases: functions that read the pairs, by name.
        measure: what is drawn against the roughness.
        at: roughness at which methods are compared in one number each: about that of greedy, and a rougher one.
        settings: of rdmm.
        metric, iterations, start: of greedy.
        syn: the metric of SyN, and its radius.
    """

    cases: Callable[[], Mapping[str, Callable[[], Inputs]]]
    measure: str = "dice"
    at: Sequence[float] = (0.41, 0.475)
    settings: Sequence[str] = ()
    metric: str = "NCC 2x2x2"
    iterations: str = "100x50x10"
    start: str = "-ia-image-centers"
    syn: Mapping[str, Any] = field(default_factory=lambda: {"syn_metric": "CC", "syn_sampling": 2})


DATA_SETS = {
    "slices": DataSet(BrainSlices(ROOT, [f"{k:02d}:{k + 1:02d}" for k in range(1, 13)]).cases, metric="NCC 2x2", iterations="100x50x20"),
    "brain2mm": DataSet(Brains(ROOT).cases),
    "livers": DataSet(Livers(ROOT).cases, measure="tre_mm", at=(0.15, 0.25)),
    "knee": DataSet(
        Knees(ROOT, ["9055361_00m:9275309_00m"]).cases,
        at=(0.18, 0.25),
        settings=KNEE_SETTINGS,
        metric="SSD",
        start="-ia-image-centers -search 200 10 20",
        syn={"syn_metric": "meansquares", "syn_sampling": 0},
    ),
}


@dataclass(frozen=True)
class Method:
    """A way to register, by the strength of its regularizer, the strongest first.

    Args:
        register: (name of the pair, pair, kind of data, strength, threads, settings of rdmm) -> registration.
        strengths: what is tried.
        package: what must be installed.
    """

    register: Callable[[str, Inputs, DataSet, str, int, Sequence[str]], Registration]
    strengths: Sequence[str]
    package: str = "rdmm"


def by_rdmm(dynamics: str) -> Method:
    """rdmm with SVF, LDDMM or RDMM, all else its defaults."""

    def register(case: str, inputs: Inputs, data: DataSet, strength: str, threads: int, settings: Sequence[str]) -> Registration:
        own = [*data.settings, f"dynamics={dynamics}", *settings]
        weight = float(strength) * compose_settings(own).config["similarity_weight"]
        typed = [s for s in own if not s.startswith("similarity_weight=")]
        return run(inputs, compose_settings([*typed, f"similarity_weight={weight:g}"]))

    return Method(register, ("0.02", "0.07", "0.2", "0.4", "1"))


def by_greedy(case: str, inputs: Inputs, data: DataSet, strength: str, threads: int, settings: Sequence[str]) -> Registration:
    """greedy, affine first."""
    import picsl_greedy

    greedy = getattr(picsl_greedy, f"Greedy{inputs.pair.fixed.grid.ndim}D")()
    with tempfile.TemporaryDirectory() as folder:
        fixed, moving, affine, warp = (f"{folder}/{name}" for name in ("fixed.nii.gz", "moving.nii.gz", "affine.txt", "warp.nii.gz"))
        for image, path in ((inputs.pair.fixed, fixed), (inputs.pair.moving, moving)):
            Image(image.data, image.grid).save(path)
        said = io.StringIO()
        pair = f"-i {fixed} {moving} -m {data.metric} -n {data.iterations} -threads {threads}"
        greedy.execute(f"-a -dof 12 {data.start} -seed 1 {pair} -o {affine}", out=said, err=said)
        greedy.execute(f"{pair} -s {strength} -it {affine} -o {warp}", out=said, err=said)
        convert(affine, f"{folder}/affine.tfm", from_="ras", to="itk")  # the file itself does not tell whose it is
        return External([warp, f"{folder}/affine.tfm"])(case, inputs)


def by_syn(case: str, inputs: Inputs, data: DataSet, strength: str, threads: int, settings: Sequence[str]) -> Registration:
    """SyN of ANTs, affine first."""
    import ants

    flow, total = (float(x) for x in strength.split(","))
    fixed, moving = (Image(x.data, x.grid).ants() for x in (inputs.pair.fixed, inputs.pair.moving))
    with tempfile.TemporaryDirectory() as folder:
        done = ants.registration(
            fixed,
            moving,
            type_of_transform="SyN",
            outprefix=f"{folder}/",
            flow_sigma=flow,
            total_sigma=total,
            reg_iterations=(100, 70, 50, 20),
            random_seed=1,
            **data.syn,
        )
        return External(done["fwdtransforms"])(case, inputs)


METHODS = {
    **{name: by_rdmm(name) for name in ("svf", "lddmm", "rdmm")},
    "greedy": Method(
        by_greedy,
        ("3vox 1.5vox", "2.5vox 1vox", "2vox 0.8vox", "1.732vox 0.7071vox", "1.4vox 0.5vox", "1vox 0.4vox"),
        "picsl_greedy",
    ),
    "syn": Method(by_syn, ("3,0.5", "3,0", "2,0", "1,0", "0.5,0"), "ants"),
}


def measured(data: str, method: str, case: str, strength: str, threads: int, settings: Sequence[str]) -> Row:
    """One run, in this process: its metrics, wall and CPU seconds."""
    set_threads(threads)
    kind, how = DATA_SETS[data], METHODS[method]
    inputs = kind.cases()[case]()
    wall, cpu = time.perf_counter(), time.process_time()
    done = how.register(case, inputs, kind, strength, threads, settings)
    spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return {**numbers(done), "subject": done.metrics["subject"], **spent}


KEYS = ("data", "method", "settings", "strength", "case")
"""What tells two runs apart."""


def planned(
    data: Iterable[str],
    methods: Iterable[str],
    settings: Sequence[str] = (),
    pairs: int | None = None,
    strengths: Sequence[str] | None = None,
    done: Sequence[Row] = (),
) -> dict[tuple[str, str, str, str], list[str]]:
    """The pairs to register, by data, method, settings and strength. Methods whose package is missing are left out, and named.

    Args:
        strengths: None: those of the method.
        done: the rows of runs that are not to be repeated.
    """
    there = [m for m in methods if find_spec(METHODS[m].package)]
    for method in sorted(set(methods) - set(there)):
        print(f"{method} is left out: the package {METHODS[method].package} is not installed")
    texts = {m: " ".join(settings) if METHODS[m].package == "rdmm" else "" for m in there}
    made = {tuple(r[k] for k in KEYS) for r in done}
    runs = {(d, m, texts[m], s): list(DATA_SETS[d].cases())[:pairs] for d in data for m in there for s in strengths or METHODS[m].strengths}
    left = {run: [case for case in cases if (*run, case) not in made] for run, cases in runs.items()}
    return {run: cases for run, cases in left.items() if cases}


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Curve:
    """The means over the pairs by strength: roughness ascending, and what was measured at it."""

    name: str
    points: Sequence[Row]

    def at(self, roughness: float, measure: str) -> float:
        """A measure at a roughness, linear between the points; NaN outside of them."""
        x, y = ([p[key] for p in self.points] for key in (ROUGHNESS, measure))
        return float(np.interp(roughness, x, y, left=math.nan, right=math.nan))


def curves(rows: Sequence[Row]) -> list[Curve]:
    """One curve for each method and its settings, from the strengths at which all of its pairs were run."""
    found = []
    for name in dict.fromkeys((r["method"], r["settings"]) for r in rows):
        own = [r for r in rows if (r["method"], r["settings"]) == name]
        cases = {r["case"] for r in own}
        groups = [[r for r in own if r["strength"] == s] for s in dict.fromkeys(r["strength"] for r in own)]
        points = [_means(group) for group in groups if {r["case"] for r in group} == cases]
        found.append(Curve(" ".join(name).strip(), sorted(points, key=lambda p: float(p[ROUGHNESS]))))
    return found


def _means(group: Sequence[Row]) -> Row:
    means = {k: fmean(r[k] for r in group) for k, v in group[0].items() if isinstance(v, int | float) and all(k in r for r in group)}
    return {"strength": group[0]["strength"], "pairs": len(group), **means}


def print_curves(data: str, found: Sequence[Curve]) -> None:
    measure = DATA_SETS[data].measure
    shown = (
        measure,
        ROUGHNESS,
        "sd_log_jacobian",
        "folds_percent",
        "folded_cells_percent",
        "inverse_consistency_subject_mm",
        "seconds",
        "cpu_seconds",
    )
    print(f"\n{data}, means\n| method | strength | pairs | {' | '.join(shown)} |\n{'|---' * (len(shown) + 3)}|")
    for curve in found:
        for p in curve.points:
            cells = [f"{p[k]:.4g}" if k in p else "" for k in shown]
            print(f"| {curve.name} | {p['strength']} | {p['pairs']} | {' | '.join(cells)} |")
    for at in DATA_SETS[data].at:
        values = [f"{curve.name} {curve.at(at, measure):.4f}" for curve in found]
        print(f"{measure} at {ROUGHNESS} {at}: {', '.join(values)}")


def draw(data: str, found: Sequence[Curve], path: Path) -> None:
    """One line for each method, with its strengths as points."""
    from matplotlib.figure import Figure

    measure = DATA_SETS[data].measure
    figure = Figure(figsize=(6, 4.2))
    panel = figure.subplots()
    for curve in found:
        panel.plot([p[ROUGHNESS] for p in curve.points], [p[measure] for p in curve.points], "o-", ms=4, label=curve.name)
    panel.set(xlabel="SDlogJ inside the subject (rougher →)", ylabel=measure, title=data)
    panel.grid(alpha=0.3)
    panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("front"), help="folder of the results (default: front)")
    parser.add_argument("--data", nargs="+", default=list(DATA_SETS), choices=list(DATA_SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--strengths", nargs="+", metavar="S", help="of one method, instead of its own")
    parser.add_argument("--pairs", type=_count, help="only the first N pairs of each data set")
    parser.add_argument("--threads", type=_count, default=2)
    parser.add_argument("--set", nargs="*", default=[], dest="settings", metavar="KEY=VALUE", help="settings of rdmm: a curve of their own")
    parser.add_argument("--worker", nargs="+", metavar="DATA METHOD STRENGTH CASE ...", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.strengths and len(a.methods) != 1:
        parser.error("--strengths are those of one method: give one with --methods")
    if not DATA.is_dir():
        parser.error(f"{DATA}: no such folder; set the variable RDMM_DATA to the registration data")
    if a.worker:
        data, method, strength, *cases = a.worker
        for case in cases:
            print(json.dumps({"case": case, **measured(data, method, case, strength, a.threads, a.settings)}), flush=True)
        return
    a.out.mkdir(parents=True, exist_ok=True)
    record = a.out / "front.jsonl"
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(a.threads)  # of SyN
    missing = 0
    for made, cases in planned(a.data, a.methods, a.settings, a.pairs, a.strengths, read_rows(record)).items():
        data, method, _, strength = made
        rows = rows_of_worker(__file__, data, method, strength, *cases, "--threads", str(a.threads), "--set", *a.settings)
        missing += len(cases) - len(rows)
        with record.open("a") as file:
            file.writelines(json.dumps({**dict(zip(KEYS, made, strict=False)), **row}) + "\n" for row in rows)
    rows = read_rows(record)
    for data in a.data:
        found = curves([r for r in rows if r["data"] == data])
        print_curves(data, found)
        draw(data, found, a.out / f"front_{data}.png")
    if missing:
        parser.exit(1, f"{missing} runs failed; their errors are above\n")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
