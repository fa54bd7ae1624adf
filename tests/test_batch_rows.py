"""A row of a batch that cannot be used costs its pair; --dry-run names it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rdmm import io
from rdmm.cli import main
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.types import ConfigError, OutputError
from rdmm.workflows.batch import Batch
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import Outcome, run_job

FAST = ["dynamics=svf", "optimizer.iterations=[1]", "optimizer.scales=[0.5]", "affine=none"]


@pytest.fixture
def images(tmp_path) -> Path:
    pair, _, _ = shapes_pair(1, (16, 16))
    for name, image in (("f", pair.fixed), ("m", pair.moving)):
        io.write_image(tmp_path / f"{name}.nii.gz", image.data, image.grid)
    return tmp_path


def here(jobs: Mapping[str, Job], logs: Path) -> Iterator[tuple[str, Outcome]]:
    """A launcher without processes."""
    for id, job in jobs.items():
        yield id, run_job(job)


def bad_rows(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Rows (id, fixed, moving) that cannot be registered."""
    (folder / "gone.nii.gz").symlink_to(folder / "nowhere.nii.gz")
    (folder / "circle.nii.gz").symlink_to(folder / "circle.nii.gz")
    (folder / "folder.nii.gz").mkdir()
    (folder / "empty.nii.gz").touch()
    paths = [
        "none.nii.gz",
        "x" * 300 + ".nii.gz",
        "x/" * 2500 + "f.nii.gz",
        "gone.nii.gz",
        "circle.nii.gz",
        "folder.nii.gz",
        "empty.nii.gz",
    ]
    paths += ["f.nii.gz/f.nii.gz", "none/f.nii.gz"]
    rows = {f"path {k}": (f"bad{k}", "f.nii.gz", path) for k, path in enumerate(paths)}
    ids = {"id of 300 letters": "i" * 300, "id of 253 letters": "i" * 253, "id of 130 letters of two bytes": "é" * 130}
    return rows | {what: (id, "f.nii.gz", "m.nii.gz") for what, id in ids.items()}


def write_rows(folder: Path, rows: list[tuple[str, str, str]]) -> str:
    (folder / "pairs.csv").write_text("id,fixed,moving\n" + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "pairs.csv")


@pytest.mark.fault(72, 75, 78, 101)
def test_a_bad_row_costs_its_pair(images):
    rows = bad_rows(images)
    path = write_rows(images, [("good1", "f.nii.gz", "m.nii.gz"), *rows.values(), ("good2", "m.nii.gz", "f.nii.gz")])
    outcomes = dict(Batch(path, f"{images}/out", Job("", "", "", FAST)).run(here))
    status = {id: o["status"] for id, o in outcomes.items()}
    assert {k for k, v in status.items() if v == "done"} == {"good1", "good2"}
    assert all(o["exit_code"] == 3 and "\n" not in o["message"] for k, o in outcomes.items() if not k.startswith("good"))
    failures = json.loads((images / "out/failures.json").read_text())
    assert {f["id"] for f in failures} == {row[0] for row in rows.values()}
    assert len((images / "out/table.csv").read_text().splitlines()) == len(rows) + 3


@pytest.mark.fault(1, 72, 78)
def test_the_dry_run_names_them(images, capsys):
    rows = bad_rows(images)
    path = write_rows(images, [("good", "f.nii.gz", "m.nii.gz"), *rows.values()])
    with pytest.raises(SystemExit) as ended:
        main(["batch", path, "-o", f"{images}/out", "--dry-run", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert ended.value.code == 2 and said["pairs"] == len(rows) + 1
    assert [text.split(": ")[0] for text in said["unusable"]] == [row[0] for row in rows.values()]
    assert not (images / "out").exists()
    with pytest.raises(SystemExit) as ended:
        main(["batch", write_rows(images, [("good", "f.nii.gz", "m.nii.gz")]), "-o", f"{images}/out", "--dry-run"])
    assert ended.value.code == 0


@pytest.mark.fault(78, 101)
@pytest.mark.parametrize("root", ["none", "f.nii.gz", "x" * 300, "x/" * 3000, "f\0"])
def test_a_root_that_is_no_folder(images, root):
    """Each row says so, or the list is refused at once."""
    batch = Batch(write_rows(images, [("a", "f.nii.gz", "m.nii.gz")]), f"{images}/out", root=f"{images}/{root}")
    if "\0" in root:
        with pytest.raises(ConfigError, match="line 2"):
            batch.jobs()
    else:
        assert set(batch.unusable(batch.jobs())) == {"a"}


@pytest.mark.fault(75)
@pytest.mark.parametrize("shard", [(1, 1), (1, 2)])
def test_ids_of_the_batchs_own_files(images, shard):
    taken = ["table.csv", "table_1of2.csv", "table_12of30.csv", "failures.json", "failures_2of2.json", "index.html", "logs", "LOGS"]
    taken += [".batch.rdmm.lock", ".x"]
    for id in taken:
        path = write_rows(images, [("a", "f.nii.gz", "m.nii.gz"), (id, "f.nii.gz", "m.nii.gz")])
        with pytest.raises(ConfigError, match=r"line 3: .*cannot be an id"):
            Batch(path, f"{images}/out", shard=shard).jobs()
    free = ["table", "table_1of2", "table_xofy.csv", "logs1", "failures", "index"]
    assert set(Batch(write_rows(images, [(id, "f.nii.gz", "m.nii.gz") for id in free]), f"{images}/out").jobs()) == set(free)


@pytest.mark.fault(43)
@pytest.mark.parametrize("name", ["table.csv", "failures.json", "index.html", "logs"])
def test_names_of_the_batch_that_are_in_the_way(images, name):
    """A folder in place of a table, a file in place of logs/: one line before anything is computed."""
    path = write_rows(images, [("a", "f.nii.gz", "m.nii.gz")])
    (images / "out").mkdir()
    (images / "out" / name).touch() if name == "logs" else (images / "out" / name).mkdir()
    with pytest.raises(OutputError, match=name):
        list(Batch(path, f"{images}/out", Job("", "", "", FAST)).run(lambda *_: pytest.fail("it computes")))
