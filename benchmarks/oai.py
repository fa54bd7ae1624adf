"""The rows of the OAI table of the RDMM paper (Shen, Vialard, Niethammer 2019), on label maps that are turned into images.

    python benchmarks/oai.py OUT [--jobs 2]

RDMM_DATA is the folder of the data (default ../shared/data). Everything is written below OUT, and what is there is not made again:

- data: images with texture, bias field and noise of their own, made from the label maps (``tissue_image``); lists of pairs.
- nets: networks on the slices, one run for each fold of the subjects. Nobody is in both training and test data.
- peers: SyN (antspyx) and greedy (picsl_greedy), each at the strengths of ``PEERS``. A tool that is not installed is left out.
- slices (and ``chosen`` in it): every result, measured by ``python eval.py experiment=oai``. The strength of each regularizer is
  the one with the best Dice on all other pairs.
- knees: the volumes, by one setting for each method (``experiment=oai_volumes``). They are too few to train on; ``shipped_net`` is the
  model that comes with rdmm.
- sigma.csv: sigma(x) in bones and in cartilage, of RDMM's networks on the slices and of optimized pre-weights on the volumes.

All runs use one thread. Seconds are wall time, without reading files.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from rdmm import convert
from rdmm.data.inputs import Inputs
from rdmm.data.studies.knees import subsample_labels
from rdmm.data.studies.pair_table import PairTable
from rdmm.data.synthetic.label_images import tissue_image
from rdmm.io import read_labels, write_image
from rdmm.registration.entry import Settings, compose_settings, run
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image

DATA = Path(os.environ.get("RDMM_DATA", "../shared/data"))

FOLDS = 3

CARTILAGE, BONE, OTHER = 0.85, 0.25, 0.5
SLICE_TABLE = (OTHER, CARTILAGE, CARTILAGE, BONE)
KNEE_TABLE = (OTHER, BONE, CARTILAGE, BONE, CARTILAGE, BONE, CARTILAGE, BONE, BONE, BONE)
"""Intensities of the background and of each label: bones are alike, and so are cartilages."""

OPTIMIZED = ["dynamics=rdmm", "penalty=omt", "penalty.omt=0.3"]

ROWS = slice(128, 288)
"""The part of a slice that is kept, along its second axis: the joint, and 20 mm above and below it."""

KNEE_PAIRS = {
    "9055361_visits": ("oai_9055361_00m_labels", "oai_9055361_96m_labels", (3, 6, 6)),
    "9275309_visits": ("oai_9275309_00m_labels", "oai_9275309_96m_labels", (3, 6, 6)),
    "two_00m": ("oai_9055361_00m_labels", "oai_9275309_00m_labels", (3, 6, 6)),
    "two_96m": ("oai_9055361_96m_labels", "oai_9275309_96m_labels", (3, 6, 6)),
}
"""Pairs of volumes: fixed, moving, and every how many voxels are kept along each axis (2.1 x 2.2 x 2.2 mm)."""

COLUMNS = ("name", "subject", "time", "split", "image", "labels")
"""Of a list of images to train on."""

Pairs = Mapping[str, tuple[Path, Path]]
"""Fixed and moving image by the pair's name; ``NAME_labels.nii.gz`` lies beside ``NAME.nii.gz``."""


def labels_of(image: Path) -> Path:
    return image.with_name(image.name.replace(".nii.gz", "_labels.nii.gz"))


def write_images(labels: Image, tissues: Image, table: Sequence[float], seed: int, path: Path) -> Path:
    """The image that is made from a map of tissues, and the label map beside it. ``path``: of the image."""
    if not labels_of(path).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, tissue_image(tissues, table, seed).data, tissues.grid)
        write_image(labels_of(path), labels.data, labels.grid, integer=True)
    return path


def slice_labels(path: Path) -> Image:
    """A slice of 160 x 80 pixels of .7 x .73 mm, which its header does not tell: femoral (1) and tibial (2) cartilage."""
    whole = read_labels(path)
    data = whole.data[..., ROWS][..., ::2]
    return Image(data, Grid(tuple(data.shape[2:]), np.diag([0.7, 0.73, 1.0])))


def with_bones(labels: Image) -> Image:
    """A slice with bones (3) above the femoral and below the tibial cartilage, over the columns between their first and last ones."""
    data = labels.data[0, 0].numpy().copy()
    columns, rows = np.arange(data.shape[0]), np.arange(data.shape[1])
    for label, border, sign in ((1, np.max, 1), (2, np.min, -1)):
        own = np.flatnonzero((data == label).any(1))
        edge = np.interp(columns, own, [border(np.flatnonzero(data[c] == label)) for c in own])
        span = (columns >= own[0]) & (columns <= own[-1])
        data[(sign * rows > sign * edge[:, None]) & span[:, None] & (data == 0)] = 3
    return Image(torch.from_numpy(data)[None, None], labels.grid)


def write_slices(out: Path) -> dict[str, Path]:
    """The images of the slices by SUBJECT_VISIT."""
    files = sorted((DATA / "slices_2d/knee_cartilage").glob("*.nii.gz"))
    names = [path.name.rsplit("_", 1)[0] for path in files]
    return {
        name: write_images(labels := slice_labels(path), with_bones(labels), SLICE_TABLE, seed, out / f"data/slices/{name}.nii.gz")
        for seed, (name, path) in enumerate(zip(names, files, strict=True))
    }


def folds(subjects: Sequence[str]) -> list[list[str]]:
    """The subjects of each fold: every third."""
    return [list(subjects)[k::FOLDS] for k in range(FOLDS)]


def write_folds(out: Path, images: Mapping[str, Path]) -> list[Pairs]:
    """Lists of images to train each fold's networks, and each fold's test pairs: a subject's first visit, and that of the next subject."""
    visits: dict[str, list[str]] = {}
    for name in images:
        visits.setdefault(name.split("_")[0], []).append(name)
    pairs: list[Pairs] = []
    for fold, test in enumerate(folds(sorted(visits))):
        others = [s for s in sorted(visits) if s not in test]
        split = {**dict.fromkeys(others, "train"), **dict.fromkeys(others[::11], "validation"), **dict.fromkeys(test, "test")}
        rows = []
        for name, image in images.items():
            subject, visit = name.split("_")
            rows.append(dict(zip(COLUMNS, (name, subject, visit, split[subject], image, labels_of(image)), strict=True)))
        write_csv(out / f"data/fold{fold}.csv", rows)
        first = [visits[s][0] for s in test]
        pairs.append({f"{a}-{b}": (images[a], images[b]) for a, b in zip(first, [*first[1:], first[0]], strict=True)})
    return pairs


def write_knees(out: Path) -> Pairs:
    """The volumes. A knee that is in two pairs is the same image in both."""
    steps = {name: step for *names, step in KNEE_PAIRS.values() for name in names}
    made = {}
    for seed, (name, step) in enumerate(steps.items()):
        labels = subsample_labels(read_labels(DATA / f"knee_mri/{name}.nii.gz"), step)
        made[name] = write_images(labels, labels, KNEE_TABLE, 1000 + seed, out / f"data/knees/{name.removesuffix('_labels')}.nii.gz")
    return {pair: (made[fixed], made[moving]) for pair, (fixed, moving, _) in KNEE_PAIRS.items()}


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_pairs(path: Path, pairs: Pairs) -> None:
    """A list of pairs as `rdmm batch` reads it."""
    columns = ("fixed", "moving", "fixed_labels", "moving_labels")
    files = {name: (f, m, labels_of(f), labels_of(m)) for name, (f, m) in pairs.items()}
    write_csv(path, [{"id": name, **{k: p.resolve() for k, p in zip(columns, own, strict=True)}} for name, own in files.items()])


WARP, AFFINE = "Warp.nii.gz", "GenericAffine.mat"
"""Files of another tool's result."""


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Args:
        package: what must be installed.
        strengths: of its regularizer, by name.
        run: (fixed, moving, strength, dimensions, folder) -> files of the map fixed -> moving in the order of ``-t``.
    """

    package: str
    strengths: Mapping[str, str]
    run: Callable[[Path, Path, str, int, Path], None]


def by_syn(fixed: Path, moving: Path, strength: str, ndim: int, folder: Path) -> None:
    """SyN with windows of 5 voxels after an affine step; ``strength``: sigmas of the step's and of the total field's smoothing."""
    import ants

    flow, total = (float(x) for x in strength.split(","))
    ants.registration(
        ants.image_read(str(fixed)),
        ants.image_read(str(moving)),
        "SyN",
        outprefix=f"{folder}/",
        syn_metric="CC",
        syn_sampling=2,
        flow_sigma=flow,
        total_sigma=total,
        reg_iterations=(100, 70, 50, 20),
        random_seed=1,
    )
    os.replace(folder / "1Warp.nii.gz", folder / WARP)
    os.replace(folder / "0GenericAffine.mat", folder / AFFINE)


def by_greedy(fixed: Path, moving: Path, strength: str, ndim: int, folder: Path) -> None:
    """greedy with windows of 5 voxels after an affine step; ``strength``: sigmas of the step's and of the total field's smoothing."""
    import picsl_greedy

    greedy, said = getattr(picsl_greedy, f"Greedy{ndim}D")(), io.StringIO()
    pair = f"-i {fixed} {moving} -m NCC {'x'.join('2' * ndim)} -n 100x50x20 -threads 1"
    greedy.execute(f"-a -dof 12 -ia-image-centers -seed 1 {pair} -o {folder}/affine.txt", out=said, err=said)
    greedy.execute(f"{pair} -s {strength} -it {folder}/affine.txt -o {folder}/{WARP}", out=said, err=said)
    convert(f"{folder}/affine.txt", f"{folder}/{AFFINE}", from_="ras", to="itk")  # the file itself does not tell whose it is


PEERS = {
    "syn": Peer("ants", {"a": "3,0", "b": "3,1", "c": "5,1"}, by_syn),
    "greedy": Peer("picsl_greedy", {"a": "1.732vox 0.7071vox", "b": "3vox 1.5vox", "c": "5vox 3vox"}, by_greedy),
}


def present() -> dict[str, Peer]:
    """The tools that are installed."""
    return {name: peer for name, peer in PEERS.items() if find_spec(peer.package)}


def strengths(peer: Peer, part: str) -> list[str]:
    """What is tried of a tool; of volumes, which take minutes, the first only."""
    return list(peer.strengths)[: 1 if part == "knees" else None]


def peer_calls(out: Path, parts: Sequence[str]) -> list[list[str]]:
    """The commands by which this program runs the other tools: one for each tool, strength and part of the data."""
    ready = [(name, s, part) for part in parts for name, peer in present().items() for s in strengths(peer, part)]
    return [[sys.executable, __file__, str(out), "--peer", *how] for how in ready]


def run_peer(out: Path, name: str, strength: str, part: str) -> None:
    """One tool on the pairs of a part: maps, and wall times. What is there is not made again."""
    with open(out / f"data/{part}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        folder = out / f"peers/{name}_{strength}/{row['id']}"
        if (folder / "seconds.txt").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        ndim = read_labels(row["fixed_labels"]).grid.ndim
        start = time.perf_counter()
        PEERS[name].run(Path(row["fixed"]), Path(row["moving"]), PEERS[name].strengths[strength], ndim, folder)
        (folder / "seconds.txt").write_text(f"{time.perf_counter() - start:.3f}\n")


def run_all(calls: Sequence[Sequence[str]], jobs: int) -> None:
    """Run commands, ``jobs`` at a time, each with one thread. The first that fails ends the program."""
    one = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with ThreadPoolExecutor(jobs) as pool:
        for call, done in zip(calls, pool.map(lambda c: subprocess.run(c, env=one, capture_output=True, text=True), calls), strict=True):
            if done.returncode:
                sys.exit(f"failed: {' '.join(call)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def training(out: Path, fold: int) -> list[str]:
    """The command that trains the networks of a fold; it continues what was interrupted."""
    keys = ["experiment=oai_net", f"data.source.path={out}/data/fold{fold}.csv", f"hydra.run.dir={out}/nets/{fold}"]
    return [sys.executable, "train.py", *keys, "resume=true", "threads=1", f"seed={fold}"]


def methods(out: Path, part: str, nets: Path | None) -> dict[str, str]:
    """The methods besides those of the experiment, as Hydra reads them: the networks in ``nets``, and the other tools."""
    own = {}
    if nets is not None:
        own = {f"{n}_net": f"['weights={nets}/{n}/best.safetensors']" for n in ("svf", "lddmm", "rdmm")}
        own["affine_net"] = f"['weights={nets}/svf/best.safetensors','initializer=zero','optimizer=none','stages=single']"
    for name, peer in present().items():
        for s in strengths(peer, part):
            folder = f"{out}/peers/{name}_{s}/{{case}}"
            own[f"{name}_{s}"] = f"{{warps: ['{folder}/{WARP}','{folder}/{AFFINE}'], seconds: '{folder}/seconds.txt'}}"
    return own


def measure(out: Path, part: str, nets: Path | None) -> list[str]:
    """The command that registers and measures the pairs of a part of the data."""
    data, experiment = ("knees", "oai_volumes") if part == "knees" else ("slices", "oai")
    own = [f"+study.methods.{name}={how}" for name, how in methods(out, part, nets).items()]
    keys = [f"study.data.{data}.path={out}/data/{part}.csv", f"hydra.run.dir={out}/{part}", "threads=1"]
    return [sys.executable, "eval.py", f"experiment={experiment}", *keys, *own, *families(part)]


def families(part: str) -> list[str]:
    """The strengths of each tool as a family, where there are several."""
    several = {name: found for name, peer in present().items() if len(found := strengths(peer, part)) > 1}
    return [f"+study.families.{name}=[{','.join(f'{name}_{s}' for s in found)}]" for name, found in several.items()]


def sigma_of_tissues(settings: Settings, inputs: Inputs) -> dict[str, float]:
    """The mean of sigma(x) at t = 1 in bones, in cartilage and in all else, mm."""
    assert inputs.fixed_labels is not None
    sigmas = run(inputs, settings).sigmas()
    assert sigmas is not None
    tissues = with_bones(inputs.fixed_labels) if inputs.fixed_labels.grid.ndim == 2 else inputs.fixed_labels
    table = SLICE_TABLE if tissues.grid.ndim == 2 else KNEE_TABLE
    kind = torch.tensor(table)[tissues.data.long()]
    return {name: float(sigmas[1][kind == value].mean()) for name, value in (("bone", BONE), ("cartilage", CARTILAGE), ("other", OTHER))}


def write_sigmas(out: Path, parts: Mapping[str, Pairs], nets: Mapping[str, Path]) -> None:
    """``sigma.csv``: sigma(x) by tissue, of RDMM's networks on the slices and of optimized pre-weights on the volumes."""
    rows = []
    for part in parts:
        own = [f"weights={nets[part]}/rdmm/best.safetensors"] if part in nets else OPTIMIZED
        experiment = "oai" if part in nets else "oai_volumes"
        settings = compose_settings([f"experiment={experiment}", *own])
        for pair, read in PairTable(str(out / f"data/{part}.csv")).cases().items():
            rows.append({"part": part, "pair": pair, **sigma_of_tissues(settings, read())})
            write_csv(out / "sigma.csv", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="how many programs run at a time, each with one thread")
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out.resolve()
    if args.peer:
        run_peer(out, *args.peer)
        return
    parts = {f"slices{k}": pairs for k, pairs in enumerate(write_folds(out, write_slices(out)))} | {"knees": write_knees(out)}
    nets = {f"slices{k}": out / f"nets/{k}" for k in range(FOLDS)}
    for part, pairs in parts.items():
        write_pairs(out / f"data/{part}.csv", pairs)
    run_all([training(out, k) for k in range(FOLDS) if not (out / f"nets/{k}/table.md").exists()], args.jobs)
    run_all(peer_calls(out, list(parts)), args.jobs)
    run_all([measure(out, part, nets.get(part)) for part in parts if not (out / part / "table.md").exists()], args.jobs)
    whole = f"study.parts=[{','.join(str(out / part) for part in nets)}]"
    run_all([[*measure(out, "slices0", nets["slices0"]), whole, f"hydra.run.dir={out}/slices"]], args.jobs)
    write_sigmas(out, parts, nets)


if __name__ == "__main__":
    main()
