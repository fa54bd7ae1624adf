"""Batches on SLURM: options, time limits, lost and cancelled jobs, arrays; against commands that imitate SLURM's (fake_slurm.py)."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import fake_slurm
import psutil
import pytest
from test_batch import FAST, make_pairs, write_list

from rdmm.cli import main
from rdmm.runtime.interrupt import interruptible
from rdmm.types import ConfigError
from rdmm.workflows import slurm
from rdmm.workflows.batch import Batch, choose_launcher
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import Local
from rdmm.workflows.slurm import Slurm, max_array_size, parse_options

pytest.importorskip("submitit")
LONG = ["dynamics=rdmm", "optimizer.iterations=[900,900,900]"]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    fake = fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(fake))
    monkeypatch.setattr(slurm, "POLL_SECONDS", (0.1, 0.5))
    monkeypatch.setattr(slurm, "LOST_SECONDS", 0.5)
    yield fake
    slurm._ask("scancel", *os.listdir(fake / "jobs"))


def batch_of(tmp_path, number, shape=(32, 32), settings=FAST):
    path = write_list(tmp_path, make_pairs(tmp_path, number, shape))
    return Batch(str(path), str(tmp_path / "out"), Job("", "", "", settings, threads=1))


def submitted(cluster):
    return [(cluster / "jobs" / name).read_text() for name in sorted(os.listdir(cluster / "jobs"))]


# ---- options


@pytest.mark.fault(98)
@pytest.mark.parametrize(
    ("text", "minutes"),
    [("4", 4), ("240", 240), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("1-12", 2160), ("0-01:30", 90), ("2-00:00:01", 2881)],
)
def test_times_are_minutes(text, minutes):
    """Fault 98: submitit calculates with minutes; every form that SLURM reads is one."""
    assert parse_options([f"time={text}"]) == {"time": minutes}


@pytest.mark.fault(98, 67, 68)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[([f"time={text}"], "time must be minutes") for text in ("4h", "-4", "1:2:3:4", "1-", "", "x", "1.5", "nan", "4 min", "1-2-3")],
        *[([f"time={text}"], "at least one minute") for text in ("0", "0:00", "0-00:00:00")],
        *[([f"{name}=0"], f"{name} must be a whole number") for name in ("cpus_per_task", "pairs_per_task", "gpus_per_node")],
        *[([f"cpus_per_task={text}"], "whole number from 1") for text in ("two", "1.5", "-1", "")],
        *[([f"mem={text}"], "mem must be megabytes") for text in ("16 G", "lots", "-1", "1.5G", "")],
        (["partition="], "partition must be a text"),
        (["partition=a\nb"], "partition must be a text"),
        (["exclusive=yes"], "exclusive must be true or false"),
        (["partiton=cpu"], "did you mean 'partition'"),
        (["tiem=4"], "did you mean 'time'"),
        (["pairs-per-tusk=4"], "did you mean 'pairs_per_task'"),
        (["cpu"], "must be NAME=VALUE"),
        (["time=4", "time=5"], "given twice"),
        (["mail-type=END", "mail_type=END"], "given twice"),
        (["mem=4G", "mem_per_cpu=1G"], r"mem and mem_per_cpu exclude each other"),
    ],
)
def test_wrong_options_are_found_at_once(options, message):
    """Faults 98, 67, 68: before a list is read, with what was typed."""
    with pytest.raises(ConfigError, match=message) as caught:
        choose_launcher("submitit", {}, None, options)
    assert options[-1].split("=")[0] in str(caught.value)


def test_options_reach_sbatch(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_LOSES", "1")
    options = ["time=0-00:04", "mem=3G", "partition=cpu", "mail-type=END", "exclusive=true", "nice=10", "cpus_per_task=2"]
    batch = batch_of(tmp_path, 1)
    dict(batch.run(choose_launcher("submitit", batch.jobs(), 7, options)))
    (text,) = submitted(cluster)
    flags = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"time=4", "mem=3G", "partition=cpu", "mail-type=END", "exclusive", "nice=10", "cpus-per-task=2", "signal=USR2@80"} <= flags
    assert not any("pairs" in f for f in flags)


def test_without_a_cluster_the_pairs_run_here(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    assert isinstance(choose_launcher("submitit", batch_of(tmp_path, 1).jobs(), 1, ["partition=cpu"]), Local)
    assert "there is no SLURM here" in caplog.text


# ---- pairs, tasks, arrays


def test_pairs_share_tasks_and_tasks_share_arrays(cluster, tmp_path, monkeypatch, capsys):
    """Five pairs, two a task, two tasks an array; a broken pair fails alone; one log a pair."""
    monkeypatch.setenv("FAKE_ARRAY", "2")
    batch = batch_of(tmp_path, 5)
    (tmp_path / "fixed3.nii.gz").write_bytes(b"broken")
    words = ["batch", batch.pairs, "-o", batch.out, "--launcher", "submitit", "--slurm", "pairs_per_task=2", *FAST]
    with pytest.raises(SystemExit) as ended:
        main(words)
    out = Path(batch.out)
    assert ended.value.code == 4, capsys.readouterr()
    assert [f["id"] for f in json.loads((out / "failures.json").read_text())] == ["p3"]
    assert {p.parent.name for p in out.glob("*/run.json")} == {"p0", "p1", "p2", "p4"}
    assert {p.name for p in (out / "logs").glob("p*.txt")} == {f"p{k}.txt" for k in range(5)}
    arrays = [[line for line in text.splitlines() if "--array" in line] for text in submitted(cluster)]
    assert arrays == [["#SBATCH --array=0-1%2"], []]  # the last task is a job of its own


@pytest.mark.fault(98)
@pytest.mark.parametrize(
    ("pairs", "jobs", "options", "size"),
    [
        (5, None, [], 1),
        (100, None, [], 1),
        (1100, None, [], 11),
        (20_000, None, [], 20),
        (1100, 10, [], 20),
        (30, 10, [], 3),
        (7, None, ["pairs_per_task=3"], 3),
    ],
)
def test_how_many_pairs_a_task_has(pairs, jobs, options, size):
    assert Slurm(parse_options(options), 8, jobs).pairs_per_task(pairs) == size


@pytest.mark.fault(98)
def test_more_tasks_than_an_array_holds(cluster, tmp_path, monkeypatch):
    """Fault 98: arrays hold at most MaxArraySize tasks; --jobs holds for all arrays together."""
    monkeypatch.setenv("FAKE_LOSES", "1")
    monkeypatch.setenv("FAKE_ARRAY", "31")
    monkeypatch.setattr(slurm, "LOST_SECONDS", 0.0)
    jobs = {f"p{k}": Job("a.nii.gz", "b.nii.gz", "out/") for k in range(40)}
    outcomes = dict(Slurm(parse_options(["pairs_per_task=1"]), 8, 10)(jobs, tmp_path))
    assert len(outcomes) == 40
    lines = [line for text in submitted(cluster) for line in text.splitlines() if "--array" in line]
    assert lines == ["#SBATCH --array=0-30%5", "#SBATCH --array=0-8%5"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert max_array_size() == slurm.ARRAY_SIZE


def test_memory_is_that_of_the_pair_whatever_is_free_here(cluster, tmp_path, monkeypatch):
    """The machine that submits may be small; the machines of the cluster are not."""
    jobs = batch_of(tmp_path, 1).jobs()
    monkeypatch.setattr("rdmm.workflows.job.estimate_memory", lambda _: (40 * 2**30, (1, 1, 1)))
    assert choose_launcher("submitit", jobs, None, []).gib == 62


def test_what_slurm_refuses_is_told(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSES", "invalid partition specified: cpuu")
    with pytest.raises(ConfigError, match=r"invalid partition specified: cpuu; check --slurm"):
        dict(batch_of(tmp_path, 2).run(Slurm(parse_options(["partition=cpuu"]))))


# ---- lost, cancelled, at the limit


@pytest.mark.fault(98)
@pytest.mark.parametrize(("accounts", "told"), [("", "job 101 is gone"), ("OUT_OF_MEMORY", r"\(OUT_OF_MEMORY\)")])
def test_a_job_that_is_gone_is_lost(cluster, tmp_path, monkeypatch, accounts, told):
    """Fault 98: cancelled by someone, with or without an accounting database; nobody waits for it for ever."""
    monkeypatch.setenv("FAKE_LOSES", "1")
    monkeypatch.setenv("FAKE_ACCOUNTS", accounts)
    outcomes = dict(batch_of(tmp_path, 2).run(Slurm(parse_options(["pairs_per_task=2"]))))
    assert {o["status"] for o in outcomes.values()} == {"lost"}
    for outcome in outcomes.values():
        assert re.search(told, outcome["message"])


@pytest.mark.fault(98)
def test_a_controller_that_does_not_answer_loses_nothing(cluster, tmp_path):
    """While squeue fails, jobs count as running; a long time ago for patience, but not gone."""
    (cluster / "silent").touch()
    threading.Timer(4 * slurm.LOST_SECONDS, (cluster / "silent").unlink).start()
    outcomes = dict(batch_of(tmp_path, 1).run(Slurm()))
    assert [o["status"] for o in outcomes.values()] == ["done"]


def running_pair(out, name="p0"):
    """Wait until a pair searches."""
    log = Path(out) / "logs" / f"{name}.txt"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (log.exists() and "level 0" in log.read_text()):
        time.sleep(0.1)


@pytest.mark.fault(98)
def test_at_the_time_limit_the_best_result_is_written(cluster, tmp_path):
    """Fault 98: SLURM's signal before the limit, to every process. The running pair writes its best result; both pairs say why."""
    batch = batch_of(tmp_path, 2, (96, 96), LONG)

    def limit():
        running_pair(batch.out)
        for path in (cluster / "queue").iterdir():  # not to bash, which slurmstepd's signal does not reach
            for child in psutil.Process(int(path.read_text())).children(recursive=True):
                if "python" in child.name():
                    child.send_signal(signal.SIGUSR2)

    threading.Thread(target=limit, daemon=True).start()
    outcomes = dict(batch.run(Slurm(parse_options(["pairs_per_task=2", "time=4"]))))
    assert {k: o["status"] for k, o in outcomes.items()} == {"p0": "interrupted", "p1": "not started"}
    assert all("time limit" in o["message"] and "--slurm time=" in o["message"] for o in outcomes.values())
    assert json.loads((Path(batch.out) / "p0/run.json").read_text())["status"] == "interrupted"
    assert "time limit" in (Path(batch.out) / "table.csv").read_text()


@pytest.mark.fault(48, 98)
def test_an_interrupted_batch_cancels_its_jobs(cluster, tmp_path, monkeypatch):
    """Ctrl-C: running pairs write their best result, which the batch waits for; no task is left in the queue."""
    monkeypatch.setattr(slurm, "LOST_SECONDS", 60)
    batch = batch_of(tmp_path, 2, (96, 96), LONG)

    def interrupt():
        running_pair(batch.out)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with interruptible():
        outcomes = dict(batch.run(Slurm(parse_options(["pairs_per_task=2"]))))
    assert outcomes["p0"]["status"] == "interrupted" and outcomes["p1"]["status"] in ("interrupted", "not started")
    assert not os.listdir(cluster / "queue")


def test_the_queue_is_asked_rarely(cluster, tmp_path, monkeypatch):
    """A question for all tasks at once, at intervals that grow up to half a minute."""
    monkeypatch.undo()
    waits = []
    alive = {f"101_{k}" for k in range(1000)}
    monkeypatch.setattr(slurm, "_wait", lambda seconds, _: waits.append(seconds) or (len(waits) >= 20 and alive.clear()))
    monkeypatch.setattr(slurm, "LOST_SECONDS", 0)
    queue = slurm.Queue(["101"])
    asked = []
    monkeypatch.setattr(queue, "tasks", lambda: asked.append(1) or set(alive))
    monkeypatch.setattr(queue, "end_of", lambda _: "")
    list(slurm._collect({f"p{k}": f"101_{k}" for k in range(1000)}, tmp_path, queue))
    assert len(asked) == len(waits) + 1 and waits[0] >= 1 and max(waits) == 30 and waits == sorted(waits)
