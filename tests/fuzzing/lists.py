"""Lists: CSV of pairs, images, landmarks and points; JSON of runs, failures, data sets and markups; YAML of configurations."""

from __future__ import annotations

import csv
import io as streams
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.case import WORDS, Case, Rng, chance, json_bytes, mutated, number, perhaps_damaged, pick, text_of
from rdmm import io
from rdmm.config.trust import require_trusted_yaml
from rdmm.data.pair_list import PAIR_COLUMNS, Row, read_pairs
from rdmm.data.training.tables import IMAGE_COLUMNS, PairSource, TableSource
from rdmm.registration.record import read_summary
from rdmm.workflows import inspect
from rdmm.workflows.reports import study_rows, write_report

PATHS = (
    "f1.nii.gz",
    "a/m1.nii",
    "./x_0001_0000.nii.gz",
    "x_0002_0000.nii.gz",
    "../x.nii",
    "/etc/passwd",
    "x" * 300 + ".nii",
    "a//b",
    "~",
    "-x",
)
SPLITS = ("train", "validation", "test", "", "Test")


def table(rng: Rng, columns: Sequence[str], cell: Callable[[str, int], str]) -> bytes:
    """A CSV of these columns; now and then with columns twice, rows of other lengths, other line ends and encodings."""
    columns = list(columns)
    if chance(rng, 0.1):
        columns.insert(int(rng.integers(len(columns) + 1)), pick(rng, (*columns, *WORDS)))
    rows = [[cell(c, k) for c in columns] for k in range(pick(rng, (1, 2, 5) * 5 + (0,)))]
    for row in rows:
        if chance(rng, 0.03):
            row.append("more") if chance(rng, 0.5) else row.pop()
    buffer = streams.StringIO(newline="")
    end = pick(rng, ("\n", "\r\n", "\r"))
    csv.writer(buffer, delimiter="," if chance(rng, 0.97) else ";", lineterminator=end).writerows([columns, *rows])
    text = (pick(rng, ("\ufeff", "\n", "# x\n")) if chance(rng, 0.1) else "") + buffer.getvalue()
    encoding = "utf-16" if chance(rng, 0.03) else "utf-8"
    return perhaps_damaged(rng, text.encode(encoding, "backslashreplace"), 0.15)


def require_laws_of_rows(rows: Sequence[Row]) -> None:
    """Each pair has an id of its own that can be the name of a folder, and two images."""
    ids = [r.id for r in rows]
    assert rows and len(set(ids)) == len(ids), "an id twice, or no rows"
    assert all(id and "/" not in id and "\0" not in id and id not in (".", "..") for id in ids), ids
    assert all({"fixed", "moving"} <= set(r.files) for r in rows), "a pair without an image"


def draw_pairs(rng: Rng) -> Case:
    """A list of pairs, or of images to train on."""
    is_pairs = chance(rng, 0.5)
    known, wanted = (PAIR_COLUMNS, ("fixed", "moving")) if is_pairs else (IMAGE_COLUMNS, ("image", "subject"))
    columns = [*[c for c in wanted if chance(rng, 0.97)], *[c for c in known if c not in wanted and chance(rng, 0.3)]]

    def cell(column: str, k: int) -> str:
        if chance(rng, 0.03):
            return pick(rng, WORDS)
        if column == "split":
            return pick(rng, SPLITS)
        return (
            f"p{k}"
            if column in ("id", "name", "subject") or chance(rng, 0.1)
            else f"{k}{column}.nii"
            if chance(rng, 0.9)
            else pick(rng, PATHS)
        )

    def run(folder: Path) -> None:
        path = folder / "pairs.csv"
        if not is_pairs:
            items = TableSource(str(path)).items()
            assert len({i.name for i in items}) == len(items) > 0
            assert all(i.image.resolve().is_relative_to(folder.resolve()) for i in items), "a path leads out"
            return
        require_laws_of_rows(read_pairs(path))
        PairSource(str(path)).image_pairs()

    return Case(run, {"pairs.csv": table(rng, columns, cell)})


def draw_landmarks(rng: Rng) -> Case:
    """Landmarks, or keypoints without a header."""
    d, has_header = pick(rng, (2, 3)), chance(rng, 0.6)
    names = [f"{side}_{axis}" for side in ("fixed", "moving") for axis in "xyz"[:d]] + (["region"] if chance(rng, 0.3) else [])
    columns = names if has_header else [text_of(rng, number(rng, 0.05)) for _ in range(d)]
    data = table(rng, columns, lambda c, k: "r" if c == "region" else text_of(rng, number(rng, 0.03, 3)))

    def run(folder: Path) -> None:
        if has_header:
            fixed, moving, regions = io.read_landmarks(folder / "q.csv", d)
            assert fixed.shape == moving.shape == (len(regions), d) and np.isfinite([*fixed, *moving]).all()
            return
        points = io.read_keypoints(folder / "q.csv", d, (5, 4, 6)[:d] if chance(rng, 0.5) else None)
        assert points.shape[1] == d and np.isfinite(points).all()

    return Case(run, {"q.csv": data})


def draw_points(rng: Rng) -> Case:
    """A list of points: CSV, or Slicer's fiducials or markups."""
    d, kind = pick(rng, (2, 3)), pick(rng, ("q.csv", "q.fcsv", "q.mrk.json"))
    d, lps = (d, chance(rng, 0.2)) if kind == "q.csv" else (d if chance(rng, 0.05) else 3, chance(rng, 0.02))
    if kind == "q.csv":
        columns = [*[a for a in "xyz"[:d] if chance(rng, 0.98)], *(["label", "t"] if chance(rng, 0.3) else [])]
        data = table(rng, columns, lambda c, k: text_of(rng, number(rng, 0.02, 50)) if c in "xyz" else pick(rng, WORDS))
    elif kind == "q.fcsv":
        frame, columns = pick(rng, ("LPS", "RAS", "0", "1") * 4 + ("IJK", "")), ["id", "x", "y", "z", "label"]
        head = f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {frame}\n# columns = {','.join(columns)}\n"
        rows = [",".join(["1", *(text_of(rng, number(rng, 0.02, 50)) for _ in "xyz"), "a"]) for _ in range(3)]
        data = perhaps_damaged(rng, (head + "\n".join(rows) + "\n").encode("utf-8", "backslashreplace"), 0.3)
    else:
        points = [{"id": str(k), "label": "a", "position": [number(rng, 0.02, 50) for _ in range(3)]} for k in range(3)]
        markup = {"coordinateSystem": pick(rng, ("LPS", "RAS") * 5 + ("IJK", 1)), "coordinateUnits": "mm", "controlPoints": points}
        node: Any = {"markups": [markup]}
        data = json_bytes(rng, mutated(rng, node) if chance(rng, 0.6) else node)

    def run(folder: Path) -> None:
        given = io.read_points(folder / kind, d, lps=lps)
        assert given.points.shape == (len(given.table.rows), d) and np.isfinite(given.points).all() and len(given.points)
        io.write_points(folder / "again.csv", given)
        again = io.read_points(folder / "again.csv", d, lps=lps)
        assert np.allclose(again.points, given.points, rtol=1e-8, atol=0), "other points after writing and reading"
        assert again.table.columns == [c.strip() for c in given.table.columns], "other columns after writing and reading"
        others = [c for c in given.table.columns if c not in "xyz"]
        assert [[r[c] for c in others] for r in again.table.rows] == [[r[c] for c in others] for r in given.table.rows], "other texts"

    return Case(run, {kind: data}, f"{kind} {d}D lps={lps}")


DATA_SET = {
    "name": "x",
    "training": [{"image": f"./x_000{k}_0000.nii.gz", "label": f"./l_000{k}_0000.nii.gz", "mask": "./m.nii.gz"} for k in range(1, 4)],
    "test": ["./x_0005_0000.nii.gz"],
    "registration_val": [{"fixed": "./x_0001_0000.nii.gz", "moving": "./x_0002_0000.nii.gz"}],
    "registration_test": [],
}
STORED = Path(__file__).parents[1] / "stored"
RUN_FILES = {path.name: path.read_bytes() for path in (STORED / "batch" / "pair").iterdir()}
RUN: dict[str, Any] = json.loads(RUN_FILES.pop("run.json"))
RUN["inputs"] = {side: {**RUN["inputs"][side], "path": str(STORED / f"{side}.nii.gz")} for side in ("fixed", "moving")}
FAILURES = [{"id": "p1", "status": "InputError", "message": "m"}, {"id": "../p", "status": "s", "message": "<b>m"}]


def _mutated(rng: Rng, node: Any) -> Any:
    for _ in range(int(rng.integers(0, 3))):
        node = mutated(rng, node)
    return node


def draw_data_set(rng: Rng) -> Case:
    """The JSON of a Learn2Reg data set."""

    def run(folder: Path) -> None:
        require_laws_of_rows(read_pairs(folder / "d.json"))
        items = TableSource(str(folder / "d.json")).items()
        assert all(i.image.resolve().is_relative_to(folder.resolve()) for i in items), "a path leads out"

    return Case(run, {"d.json": json_bytes(rng, _mutated(rng, DATA_SET))})


def draw_run(rng: Rng) -> Case:
    """The run.json of a finished run."""
    data, wants_page = json_bytes(rng, _mutated(rng, RUN)), chance(rng, 0.1)

    def run(folder: Path) -> None:
        summary = read_summary(folder / "run.json")
        assert isinstance(summary["seed"], int) and isinstance(summary["config"], dict)
        inspect.info(str(folder))
        if wants_page:
            assert write_report(str(folder), overwrite=True).read_text().startswith("<"), "no page"
            assert read_summary(folder / "run.json")["metrics"] == summary["metrics"], "other metrics after the report"

    return Case(run, RUN_FILES | {"run.json": data}, "report" if wants_page else "")


def draw_study(rng: Rng) -> Case:
    """The folder of a batch: run.json of a pair, and failures.json."""
    data, failures = json_bytes(rng, _mutated(rng, RUN)), json_bytes(rng, _mutated(rng, FAILURES))

    def run(folder: Path) -> None:
        pair = folder / "p1"
        pair.mkdir()
        (folder / "run.json").rename(pair / "run.json")
        rows = study_rows(folder)
        assert all(isinstance(row["id"], str) for row in rows), "a row without an id"
        text = write_report(str(folder), overwrite=True).read_text()
        assert "<i onx>" not in text and "<b>m" not in text, "a text of the files is HTML"

    return Case(run, {"run.json": data, "failures.json": failures})


YAML = "optimizer:\n  iterations: [1, 2, 3]\n  scales: [0.25, 0.5, 1.0]\nsimilarity: &s {blur: 0.1}\ndynamics: {steps: 5}\n"
HOSTILE_YAML = ("x: ${oc.env:HOME}", "a: *s", "b: !!python/object:os.system", "c: " + "[" * 5000, "<<: *s", "? [1]\n: 2", "y: .nan", "\t")
HOSTILE_YAML += ("_target_: os.system", "hydra: {run: {dir: /}}", "# @package hydra", "z: 1_000", "d: 2020-01-01", "x: !!binary aGk=")


def draw_yaml(rng: Rng) -> Case:
    """A folder of configurations from elsewhere."""
    lines = YAML.splitlines()
    for _ in range(int(rng.integers(0, 3))):
        lines.insert(int(rng.integers(len(lines) + 1)), pick(rng, (*HOSTILE_YAML, *WORDS)))
    data = perhaps_damaged(rng, "\n".join(lines).encode("utf-8", "backslashreplace"), 0.4)
    return Case(lambda folder: require_trusted_yaml(folder), {"c.yaml": data})


DRAWS = (draw_pairs, draw_landmarks, draw_points, draw_data_set, draw_run, draw_study, draw_yaml)
GENERATORS = {f"list_{draw.__name__.removeprefix('draw_')}": draw for draw in DRAWS}
