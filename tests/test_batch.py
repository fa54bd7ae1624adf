"""rdmm batch: failures do not affect other pairs, resuming skips finished pairs, output folders are protected."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from rdmm import io
from rdmm.data.inputs import read_inputs
from rdmm.data.pair_list import read_pairs
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.io import Outputs
from rdmm.spatial.grid import Grid
from rdmm.types import ConfigError, InputError, OutputError
from rdmm.workflows.batch import Batch, format_table, parallel_jobs, parse_shard
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import Local

FAST = ["dynamics=svf", "optimizer.iterations=[3,2,1]"]


SEEDS = (0, 1, 2, 3, 7, 5)
"""Of scenes that a few iterations on few voxels register; that of seed 4 is turned by 180 degrees, and its pair fails."""


def make_pairs(folder: Path, number: int, shape=(32, 32)) -> list[dict[str, str]]:
    rows = []
    for k in range(number):
        pair, fixed_labels, moving_labels = shapes_pair(SEEDS[k % 6], shape)
        images = {"fixed": pair.fixed.data, "moving": pair.moving.data, "fixed_labels": fixed_labels, "moving_labels": moving_labels}
        row = {"id": f"p{k}"}
        for name, x in images.items():
            row[name] = f"{name}{k}.nii.gz"
            io.write_image(folder / row[name], x, pair.fixed.grid, integer="labels" in name)
        rows.append(row)
    return rows


def write_list(folder: Path, rows: list[dict[str, str]], name: str = "pairs.csv") -> Path:
    io.write_table(folder / name, rows)
    return folder / name


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Four pairs that can be registered."""
    folder = tmp_path_factory.mktemp("pairs")
    write_list(folder, make_pairs(folder, 4))
    return folder / "pairs.csv"


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory) -> Path:
    """Their results from one uninterrupted batch."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert subprocess.run(command(pairs, out, "--jobs", "2"), capture_output=True).returncode == 0
    return out


def command(path: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "rdmm", "batch", str(path), "-o", str(out), *FAST, *more]


def results(out: Path) -> dict[str, bytes]:
    """All result files of all pairs, except run.json, which contains times."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*/*")) if p.parent.name != "logs" and p.name != "run.json"}


def worker_of(process: psutil.Process, log: Path) -> psutil.Process | None:
    for child in process.children(recursive=True):
        try:
            if os.readlink(f"/proc/{child.pid}/fd/1") == str(log):
                return child
        except OSError:
            continue
    return None


@pytest.fixture(scope="module")
def twenty_four(tmp_path_factory):
    """24 pairs: three are corrupt, one cannot be registered, and one is killed while it runs."""
    folder = tmp_path_factory.mktemp("many")
    rows = make_pairs(folder, 24)
    (folder / "moving3.nii.gz").write_bytes((folder / "moving3.nii.gz").read_bytes()[:300])
    (folder / "fixed7.nii.gz").write_bytes(b"hello")
    (folder / "moving_labels11.nii.gz").unlink()
    grid = io.read_image(folder / "fixed0.nii.gz").grid
    for name, half in (("fixed_mask", slice(0, 6)), ("moving_mask", slice(26, 32))):
        mask = io.read_image(folder / "fixed0.nii.gz").data * 0
        mask[:, :, half] = 1
        io.write_image(folder / f"{name}.nii.gz", mask, grid)
        rows[15][name] = f"{name}.nii.gz"
    path = write_list(folder, [{**{"fixed_mask": "", "moving_mask": ""}, **row} for row in rows])
    out = folder / "out"
    with subprocess.Popen(command(path, out, "--jobs", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = out / "logs" / "p19.txt"
        while process.poll() is None:
            child = worker_of(psutil.Process(process.pid), log) if log.exists() else None
            if child is not None:
                child.kill()
                break
            time.sleep(0.02)
        text, error = process.communicate()
    return path, out, process.returncode, text, error


@pytest.mark.fault(72, 73)
def test_one_pair_costs_nothing_but_itself(twenty_four):
    """Faults 72, 73: 19 results, 5 named failures, exit code 4."""
    _, out, code, text, _ = twenty_four
    assert code == 4, text
    failures = {f["id"]: f for f in json.loads((out / "failures.json").read_text())}
    kinds = {k: f["status"] for k, f in failures.items()}
    assert kinds == {"p3": "InputError", "p7": "InputError", "p11": "InputError", "p15": "InputError", "p19": "killed"}
    assert "SIGKILL" in failures["p19"]["message"] and "moving_labels11.nii.gz" in failures["p11"]["message"]
    done = {p.parent.name for p in out.glob("*/run.json")}
    assert done == {f"p{k}" for k in range(24)} - set(kinds)
    assert "19 of 24 pairs done" in text
    assert len((out / "table.csv").read_text().splitlines()) == 25
    page = (out / "index.html").read_text()
    assert all(k in page for k in kinds) and page.index(">p3<") < page.index(">p0<")  # what failed comes first
    assert not list(out.glob("*/.*")) and not list(out.glob(".*.lock"))


@pytest.mark.fault(77)
def test_resume_does_only_what_is_not_done(twenty_four, tmp_path):
    """Pairs that were repaired, and one whose result was truncated (fault 77), run again; the others are not touched."""
    path, out, *_ = twenty_four
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/run.json")}
    cut = out / "p5" / "1Warp.nii.gz"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-20])
    done = subprocess.run(command(path, out, "--resume", "--json"), capture_output=True, text=True)
    assert done.returncode == 4
    assert set(json.loads(done.stdout)["failed"]) == {"p3", "p7", "p11", "p15"}
    again = {p.parent.name for p in out.glob("*/run.json") if before.get(p) != p.stat().st_mtime_ns}
    assert again == {"p5", "p19"}
    assert cut.read_bytes() == whole


def test_settings_and_inputs_decide_what_is_done(pairs, whole):
    job = Job("", "", "", FAST, threads=1)
    jobs = Batch(str(pairs), str(whole), job).jobs()
    assert all(j.find_finished_run(j.settings()) for j in jobs.values())
    elsewhere = Batch(os.path.relpath(pairs), str(whole), replace(job, threads=2)).jobs()["p0"]
    assert not Path(elsewhere.fixed).is_absolute() and elsewhere.find_finished_run(elsewhere.settings())
    folding = replace(jobs["p0"], max_folding=-1.0)
    assert folding.find_finished_run(folding.settings()) is None
    for other in (replace(job, overrides=[*FAST, "similarity=ncc"]), replace(job, seed=1), replace(job, inputs={"nan": "zero"})):
        changed = Batch(str(pairs), str(whole), other).jobs()["p0"]
        assert changed.find_finished_run(changed.settings()) is None
    with pytest.raises(OutputError, match="already exists; use --resume to continue, or --overwrite to start again"):
        list(Batch(str(pairs), str(whole), job).run(Local(2)))


@pytest.mark.fault(66)
def test_order_and_company_do_not_matter(pairs, whole, tmp_path):
    """Fault 66: alone or with others, in any order, in shards, by rdmm register: the files are the same."""
    lines = pairs.read_text().splitlines()
    other = pairs.parent / "turned.csv"
    other.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    for more in (["--shard", "1/2", "--jobs", "1"], ["--shard", "2/2"]):
        assert subprocess.run(command(other, tmp_path / "b", *more), capture_output=True).returncode == 0
    assert results(tmp_path / "b") == results(whole)
    assert {p.name for p in (tmp_path / "b").glob("table*")} == {"table_1of2.csv", "table_2of2.csv"}
    f = pairs.parent
    labels = ["--fixed-labels", f / "fixed_labels2.nii.gz", "--moving-labels", f / "moving_labels2.nii.gz"]
    words = [sys.executable, "-m", "rdmm", "register", f / "fixed2.nii.gz", f / "moving2.nii.gz", *labels, "-o", f"{tmp_path}/c/p2/"]
    assert subprocess.run([*map(str, words), "--threads", "1", *FAST], capture_output=True).returncode == 0
    assert results(tmp_path / "c") == {k: v for k, v in results(whole).items() if k.startswith("p2/")}


def test_killed_at_any_moment_and_resumed(pairs, whole, tmp_path):
    """If the whole batch is killed, its workers end too. Resuming gives the same results to the bit."""
    out, chance = tmp_path / "out", random.Random(3)
    for _ in range(2):
        process = subprocess.Popen(command(pairs, out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(3, 6))
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=60)  # the server of workers sees it once its modules are loaded
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert subprocess.run(command(pairs, out, "--resume"), capture_output=True).returncode == 0
    assert results(out) == results(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.fault(48, 49)
def test_interruption_writes_what_there_is(tmp_path, number, code):
    """Running pairs write their best result within ten seconds, no others are started, and --resume runs them."""
    path = write_list(tmp_path, make_pairs(tmp_path, 3, (96, 96)))
    words = [
        *command(path, tmp_path / "out", "--jobs", "1", "--json")[:-3],
        "dynamics=rdmm",
        "optimizer.iterations=[900,900,900]",
        "--jobs",
        "1",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = tmp_path / "out" / "logs" / "p0.txt"
    while not (log.exists() and "level 0" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    begin = time.monotonic()
    os.killpg(process.pid, number)  # as a terminal and a scheduler do: to every process
    process.communicate()
    assert process.returncode == code
    assert time.monotonic() - begin < 10
    assert json.loads((tmp_path / "out/p0/run.json").read_text())["status"] == "interrupted"
    status = {f["id"]: f["status"] for f in json.loads((tmp_path / "out/failures.json").read_text())}
    assert status == {"p0": "interrupted", "p1": "not started", "p2": "not started"}


@pytest.mark.fault(46)
def test_two_batches_in_one_folder(pairs, tmp_path):
    """Fault 46: the second batch reports an error."""
    with Outputs(f"{tmp_path}/batch.").locked():
        done = subprocess.run(command(pairs, tmp_path), capture_output=True, text=True)
    assert done.returncode == 3 and "another run of rdmm is writing there" in done.stderr


def test_images_and_shapes_in_one_list(pairs, tmp_path):
    t = np.arange(24) * (2 * np.pi / 24)
    cells = np.stack([np.arange(24), (np.arange(24) + 1) % 24], 1)
    for name, width in (("a", 1.5), ("b", 1.0)):
        io.write_mesh(tmp_path / f"{name}.vtk", np.stack([width * np.cos(t), np.sin(t), 0 * t], 1), cells)
    (tmp_path / "list.csv").write_text(
        f"id,fixed,moving\ncurves,a.vtk,b.vtk\nimages,{pairs.parent}/fixed0.nii.gz,{pairs.parent}/moving0.nii.gz\n"
    )
    batch = Batch(
        str(tmp_path / "list.csv"), str(tmp_path / "out"), Job("", "", "", ["optimizer.iterations=[3]", "optimizer.scales=[1.0]"])
    )
    rows = dict(batch.run(Local(2)))
    assert {k: r["status"] for k, r in rows.items()} == {"curves": "done", "images": "done"}
    assert (tmp_path / "out/curves/Warped.vtk").exists() and (tmp_path / "out/images/Warped.nii.gz").exists()
    assert (tmp_path / "out/index.html").read_text().count("data:image/jpeg") == 2
    assert all(r == rows[k] for k, r in batch.run(Local(2), resume=True))


def test_submitit(pairs, tmp_path):
    """submitit's local jobs replace those of a cluster."""
    pytest.importorskip("submitit")
    broken = pairs.parent / "broken.csv"
    header, first, second, *_ = pairs.read_text().splitlines()
    broken.write_text("\n".join([header, first, second.replace("fixed1.nii.gz", "fixed11.nii.gz")]) + "\n")
    done = subprocess.run(
        command(broken, tmp_path / "out", "--launcher", "submitit", "--slurm", "partition=cpu"), capture_output=True, text=True
    )
    assert done.returncode == 4, done.stderr
    assert [f["id"] for f in json.loads((tmp_path / "out/failures.json").read_text())] == ["p1"]
    assert len(list((tmp_path / "out").glob("*/run.json"))) == 1


def test_a_learn2reg_list(pairs, tmp_path):
    folder = pairs.parent
    names = {"image": "./fixed0.nii.gz", "label": "./fixed_labels0.nii.gz"}
    data = {"training": [names], "registration_val": [{"fixed": "./fixed0.nii.gz", "moving": "./moving0.nii.gz"}]}
    (folder / "dataset.json").write_text(json.dumps(data))
    (row,) = read_pairs(folder / "dataset.json")
    assert row.id == "fixed0_moving0" and set(row.files) == {"fixed", "moving", "fixed_labels"}
    (folder / "empty.json").write_text("{}")
    with pytest.raises(ConfigError, match="no pairs"):
        read_pairs(folder / "empty.json")


def test_learn2reg_keypoints_are_landmarks(tmp_path):
    """Keypoints of a Learn2Reg JSON count voxels of files with different axis orders. They give the same errors as landmarks in
    millimeters, and wrong ones fail their pair with a message."""
    rng = np.random.default_rng(0)
    pair, _, _ = shapes_pair(0, (24, 28, 20))
    grids = [Grid((24, 28, 20), a) for a in (np.diag([-2.0, 1.5, 3, 1]), np.eye(4)[[1, 0, 2, 3]])]
    voxels = [rng.uniform(2, 17, (9, 3)).round(2) for _ in grids]
    entries = []
    for k, (grid, x) in enumerate(zip(grids, voxels, strict=True)):
        io.write_image(tmp_path / f"A_0001_000{k}.nii.gz", pair.fixed.data, grid)
        np.savetxt(tmp_path / f"A_0001_000{k}.csv", x, delimiter=",", fmt="%.2f")
        entries.append({"image": f"./A_0001_000{k}.nii.gz", "keypoints": f"./A_0001_000{k}.csv"})
    record = {"fixed": entries[0]["image"], "moving": entries[1]["image"]}
    (tmp_path / "A_dataset.json").write_text(json.dumps({"training": entries, "registration_val": [record]}))
    (row,) = read_pairs(tmp_path / "A_dataset.json")
    files = {k: str(v) for k, v in row.files.items()}
    assert Path(files["moving_keypoints"]).name == "A_0001_0001.csv"
    read = read_inputs(**files, require_overlap=False).landmarks
    worlds = [x @ np.asarray(g.affine)[:3, :3].T + np.asarray(g.affine)[:3, 3] for x, g in zip(voxels, grids, strict=True)]
    assert read is not None and np.allclose(read.fixed, worlds[0]) and np.allclose(read.moving, worlds[1])
    keypoints = {k: v for k, v in files.items() if k.endswith("keypoints")}
    job = Job(files["fixed"], files["moving"], f"{tmp_path}/out/", ["optimizer=none", "affine=none"], keypoints)
    done, *_ = job.run(job.read(), job.settings())
    assert done.metrics["tre_before_mm"] == pytest.approx(np.linalg.norm(worlds[0] - worlds[1], axis=1).mean())
    assert "--moving-keypoints" in json.loads((tmp_path / "out/run.json").read_text())["command"]
    assert job.find_finished_run(job.settings()) is not None
    for text, message in (
        ("", "is empty"),
        ("1,2\n", "row 1 holds 2"),
        ("1,2,3\n", "holds 9 keypoints but"),
        ("1,2,x\n", "row 1: z is 'x'"),
    ):
        (tmp_path / "A_0001_0001.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            read_inputs(**files, require_overlap=False)
    (tmp_path / "A_0001_0001.csv").write_text("1,2,3\n" * 8 + "1,2,99\n")
    with pytest.raises(InputError, match=r"row 9.*outside"):
        read_inputs(**files, require_overlap=False)
    with pytest.raises(InputError, match="both images"):
        read_inputs(files["fixed"], files["moving"], fixed_keypoints=files["fixed_keypoints"], require_overlap=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "3/2"], "1 <= i <= n"),
        (["--shard", "half"], "must be i/n"),
        (["--shard", "1/9"], "only 4 pairs"),
        (["--jobs", "0"], "0 is not in the range x>=1"),
        (["--slurm", "a=b"], "--launcher submitit"),
        (["--launcher", "submitit", "--slurm", "ab"], "NAME=VALUE"),
        (["dynamics=lddm"], "did you mean 'lddmm'"),
        (["pairs2"], "KEY=VALUE"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_wrong_words(pairs, tmp_path, capsys, words, message):
    from rdmm.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["batch", str(pairs), "-o", str(tmp_path / "out"), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_list_may_name_files_anywhere(pairs, tmp_path):
    """A CSV may use absolute paths; a JSON may not, nor lead out of its folder by .. or links."""
    f = pairs.parent
    (tmp_path / "own.csv").write_text(f"fixed,moving\n{f}/fixed0.nii.gz,{f}/moving0.nii.gz\n")
    (row,) = read_pairs(tmp_path / "own.csv")
    assert row.files["fixed"] == f / "fixed0.nii.gz"
    theirs = {"registration_val": [{"fixed": f"{f}/fixed0.nii.gz", "moving": f"{f}/moving0.nii.gz"}]}
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    with pytest.raises(ConfigError, match="leads out of"):
        read_pairs(tmp_path / "theirs.json")


@pytest.mark.parametrize("id", ["../x", "logs", "table.csv", ".x", "a/b"])
@pytest.mark.fault(75)
def test_names_that_are_taken_or_lead_away(pairs, id):
    """Fault 75."""
    path = pairs.parent / "named.csv"
    path.write_text(f"id,fixed,moving\n{id},fixed0.nii.gz,moving0.nii.gz\n")
    with pytest.raises(ConfigError, match=r"line 2: .* cannot be (an id|the name)"):
        Batch(str(path), "out").jobs()


def test_as_many_at_once_as_memory_allows(pairs, monkeypatch):
    jobs = Batch(str(pairs), "out").jobs()
    need = max(job.memory() for job in jobs.values())
    monkeypatch.setattr("rdmm.workflows.batch.available_memory", lambda: 3 * need)
    assert parallel_jobs(jobs, 4)[0] == 2
    monkeypatch.setattr("rdmm.workflows.batch.available_memory", lambda: 100 * need)
    assert parallel_jobs(jobs, 3)[0] == 3 and parallel_jobs(jobs, 99)[0] == len(jobs)


def test_volume_nought_is_a_volume():
    job = Job("a", "b", "", inputs={"volume": 0, "strict": False, "landmarks": None, "nan": "zero"})
    assert job.given_inputs == {"volume": 0, "nan": "zero"} and "--volume 0" in job.command


def test_small_things(tmp_path):
    assert parse_shard(None) == (1, 1) and parse_shard("2/5") == (2, 5)
    text = format_table(
        [{"id": "a", "status": "done", "message": "odd", "dice": 0.5}, {"id": "b", "status": "InputError", "message": "gone"}]
    )
    assert "a   done        -        0.5" in text and text.endswith("a: warning: odd\nb: gone")
    with pytest.raises(InputError):
        read_pairs(tmp_path / "none.csv")


def test_dry_run_writes_nothing(pairs, tmp_path):
    done = subprocess.run(command(pairs, tmp_path / "out", "--dry-run"), capture_output=True, text=True)
    assert done.returncode == 0 and "pairs: 4" in done.stdout and not (tmp_path / "out").exists()
