"""Run the pairs of a batch on a SLURM cluster: several pairs in a task, tasks in job arrays.

A task runs its pairs one after the other, each in a process of its own, and writes each outcome to a file. The batch collects these files
and asks SLURM which tasks are still there: a task that is gone without its outcomes is lost, and its pairs say so.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing.forkserver
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdmm.io import write_atomically
from rdmm.runtime.interrupt import interruptible, stop
from rdmm.types import ConfigError, nearest
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import INTERRUPTED_OUTCOME, Local, Outcome, failure_outcome, worker_context

log = logging.getLogger(__name__)

TIMEOUT_MINUTES = 240
"""Time limit of a task unless --slurm time=... sets another; far above the minute or two that a pair takes."""

TASKS, PAIRS_PER_TASK = 100, 20
"""A batch becomes about TASKS tasks, of at most PAIRS_PER_TASK pairs: each task imports the library once, which takes seconds."""

SIGNAL_SECONDS = 90
"""How long before the time limit SLURM tells a task to write its best result."""

ARRAY_SIZE = 1000
"""Tasks in one job array where SLURM does not tell its MaxArraySize (its default allows 1001)."""

POLL_SECONDS = (1.0, 30.0)
"""Shortest and longest interval at which the outcomes are collected; it grows while nothing ends."""

LOST_SECONDS, CANCEL_SECONDS = 60.0, 2.0
"""How long a task may be missing from the queue before its pairs are lost, because shared folders show new files late; and of a batch that
was interrupted, which waits LOST_SECONDS at most for the results that running pairs still write."""


def _number(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise ValueError("a whole number from 1 on, e.g. 4")
    return int(text)


def _minutes(text: str) -> int:
    """Minutes, as SLURM reads a time: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; begun minutes count whole."""
    days, dash, rest = text.rpartition("-")
    numbers = rest.split(":")
    if not all(re.fullmatch(r"\d{1,6}", x) for x in [*numbers, *([days] if dash else [])]) or len(numbers) > 3:
        raise ValueError("minutes, or D-HH:MM:SS, e.g. 60 or 1-12:00:00")
    values = [int(x) for x in numbers]
    if dash:
        hours, minutes, seconds = [*values, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: [0, *values, 0], 2: [0, *values], 3: values}[len(values)]
    total = math.ceil(int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60)
    if total < 1:
        raise ValueError("at least one minute, e.g. 60")
    return total


def _memory(text: str) -> str:
    if not re.fullmatch(r"0|[1-9]\d*[KMGT]?B?", text, re.IGNORECASE):
        raise ValueError("megabytes, or a number with K, M, G or T, e.g. 16G")
    return text


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("a text on one line, e.g. partition=cpu")
    return text


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


OPTIONS: dict[str, Callable[[str], Any]] = {
    "time": _minutes,
    "pairs_per_task": _number,
    "mem": _memory,
    "mem_per_cpu": _memory,
    "cpus_per_task": _number,
    "gpus_per_node": _number,
    "exclusive": _flag,
    **dict.fromkeys(("partition", "account", "qos", "constraint", "nodelist", "exclude", "reservation", "gres", "licenses"), _text),
    **dict.fromkeys(("dependency", "comment", "wckey", "mail_type", "mail_user", "nice", "begin", "clusters"), _text),
}
"""Options of --slurm, those of sbatch and ``pairs_per_task``, and how their values are read."""


def parse_options(typed: Sequence[str]) -> dict[str, Any]:
    """The values of --slurm NAME=VALUE.

    Raises:
        ConfigError: no such option (with the nearest), a value of the wrong form, or an option twice.
    """
    out: dict[str, Any] = {}
    for text in typed:
        name, equals, value = text.partition("=")
        key = name.strip().lstrip("-").replace("-", "_")
        if not equals:
            raise ConfigError(f"--slurm {text}: must be NAME=VALUE, e.g. partition=cpu")
        if key not in OPTIONS:
            raise ConfigError(f"--slurm {text}: no option {key!r}{nearest(key, list(OPTIONS))}; there are {', '.join(OPTIONS)}")
        if key in out:
            raise ConfigError(f"--slurm {text}: {key} is given twice")
        try:
            out[key] = OPTIONS[key](value.strip())
        except ValueError as error:
            raise ConfigError(f"--slurm {text}: {key} must be {error}") from None
    if "mem" in out and "mem_per_cpu" in out:
        raise ConfigError("--slurm: mem and mem_per_cpu exclude each other; give one of them")
    return out


def has_slurm() -> bool:
    """Whether this machine can submit jobs."""
    return bool(shutil.which("sbatch") and shutil.which("srun"))


def require_submitit() -> Any:
    """The module submitit. Raises ConfigError if it is not installed."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--launcher submitit needs an optional part: pip install 'rdmm[slurm]'") from error
    return submitit


@dataclass(frozen=True)
class Task:
    """What one SLURM task runs: pairs one after the other. Their outcomes go to files NAME.json in the folder ``outcomes``."""

    jobs: Mapping[str, Job]
    logs: Path
    outcomes: Path

    def __call__(self) -> None:
        left = {id: job for id, job in self.jobs.items() if not self._path(id).exists()}  # queued again after its node failed
        signal.signal(
            signal.SIGUSR2, signal.SIG_IGN
        )  # SLURM signals all processes of a task; those of pairs inherit this and hear of it here
        worker_context()
        multiprocessing.forkserver.ensure_running()
        reached: list[int] = []

        def stop_at_limit(number: int, _: object) -> None:
            reached.append(number)
            stop.set()

        signal.signal(signal.SIGUSR2, stop_at_limit)
        with interruptible("writing the best result so far"):
            for id, outcome in Local(1)(left, self.logs):
                if reached and outcome["status"] == "interrupted":
                    outcome = {
                        **outcome,
                        "message": "the time limit of its job was reached: the best result so far was written; " + MORE_TIME,
                    }
                self._write(id, outcome)
                del left[id]
            why = f"the time limit of its job was reached before; {MORE_TIME}" if reached else "its job was ended before"
        for id in left:
            self._write(id, failure_outcome("not started", why, 130))

    def _path(self, id: str) -> Path:
        return self.outcomes / f"{id}.json"

    def _write(self, id: str, outcome: Outcome) -> None:
        write_atomically(self._path(id), json.dumps(outcome).encode())


MORE_TIME = "give more time (--slurm time=...) or fewer pairs (--slurm pairs_per_task=...), and --resume"


@dataclass(frozen=True)
class Slurm:
    """Run the pairs as tasks of job arrays.

    Args:
        options: of parse_options.
        gib: memory of one task, GiB, unless the options say otherwise.
        parallel_tasks: number of tasks that may run at the same time; None: any.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    gib: int = 8
    parallel_tasks: int | None = None

    def __call__(self, jobs: Mapping[str, Job], logs: Path) -> Iterator[tuple[str, Outcome]]:
        folder = Path(tempfile.mkdtemp(prefix="slurm-", dir=logs)).resolve()
        outcomes = folder / "outcomes"
        outcomes.mkdir()
        ids = list(jobs)
        size = self.pairs_per_task(len(ids))
        parts = [ids[i : i + size] for i in range(0, len(ids), size)]
        queue = Queue([])
        try:
            submitted = self._submit([Task({id: jobs[id] for id in part}, logs.resolve(), outcomes) for part in parts], folder, queue)
            log.info("%d pairs in %d tasks of SLURM, jobs %s", len(ids), len(parts), ", ".join(queue.jobs))
            task_of = {id: task for task, part in zip(submitted, parts, strict=True) for id in part}
            yield from _collect(task_of, outcomes, queue)
        except BaseException:
            queue.cancel()
            raise

    def pairs_per_task(self, pairs: int) -> int:
        """The option, or as many as make about TASKS tasks."""
        return int(self.options.get("pairs_per_task", min(PAIRS_PER_TASK, math.ceil(pairs / (self.parallel_tasks or TASKS)))))

    def _submit(self, tasks: Sequence[Task], folder: Path, queue: Queue) -> list[str]:
        """Submit tasks in arrays of at most MaxArraySize; their ids. The jobs' ids are added to ``queue``."""
        submitit = require_submitit()
        size = max_array_size()
        arrays = [tasks[i : i + size] for i in range(0, len(tasks), size)]
        executor = submitit.SlurmExecutor(folder=folder)
        parallel = len(tasks) if self.parallel_tasks is None else max(1, self.parallel_tasks // len(arrays))
        executor.update_parameters(**self._parameters(tasks), array_parallelism=parallel)
        out: list[str] = []
        for array in arrays:
            try:
                submitted = executor.map_array(_run, array)
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
                text = " ".join(str(error).split()) or type(error).__name__
                raise ConfigError(
                    f"SLURM does not take the jobs: {text[:300]}; check --slurm, or submit fewer tasks (pairs_per_task)"
                ) from error
            out += [str(task.job_id) for task in submitted]
            queue.jobs.append(str(submitted[0].job_id).partition("_")[0])
        return out

    def _parameters(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """The parameters of submitit's executor."""
        options = {k: v for k, v in self.options.items() if k != "pairs_per_task" and v is not False}
        time_limit = options.pop("time", TIMEOUT_MINUTES)
        threads = max((job.threads or 1) for task in tasks for job in task.jobs.values())
        memory = {} if "mem_per_cpu" in options else {"mem": options.pop("mem", f"{self.gib}G")}
        return {
            "job_name": "rdmm",
            "time": time_limit,
            "signal_delay_s": min(SIGNAL_SECONDS, 20 * time_limit),
            "cpus_per_task": options.pop("cpus_per_task", threads),
            **memory,
            "additional_parameters": {k.replace("_", "-"): v for k, v in options.items()},
        }


def _run(task: Task) -> None:
    task()


def max_array_size() -> int:
    """SLURM's MaxArraySize: tasks in one job array."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config") or "", re.MULTILINE)
    return max(1, int(found.group(1)) if found else ARRAY_SIZE)


def _ask(*command: str) -> str | None:
    """What a command of SLURM prints; None: it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass
class Queue:
    """What SLURM knows of the jobs of this batch. squeue is asked for everything at once; it works without an accounting database."""

    jobs: list[str]

    def tasks(self) -> set[str] | None:
        """The ids of the tasks (JOB or JOB_INDEX) that wait or run; None: SLURM does not answer now."""
        text = _ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i")
        return None if text is None else set(text.split())

    def end_of(self, task: str) -> str:
        """How a task ended, where SLURM keeps accounts; else ''."""
        text = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={task}") or ""
        return f" ({text.splitlines()[0].strip()})" if text.strip() else ""

    def cancel(self) -> None:
        """End all jobs. Running pairs get SIGTERM and write their best result so far."""
        if self.jobs:
            _ask("scancel", *self.jobs)


def _collect(task_of: Mapping[str, str], outcomes: Path, queue: Queue) -> Iterator[tuple[str, Outcome]]:
    """Yield the outcome of each pair when its file is there. The pairs of a task that is gone without them are lost.

    Args:
        task_of: the task of each pair.
    """
    left, gone = dict(task_of), dict[str, float]()
    cancelled: float | None = None
    interval = POLL_SECONDS[0]
    while left:
        if stop.is_set() and cancelled is None:
            cancelled = time.monotonic()
            queue.cancel()
        alive, now = queue.tasks(), time.monotonic()  # asked first: a task that is gone has written its outcomes before
        ended = [id for name in sorted(os.listdir(outcomes)) if (id := name.removesuffix(".json")) in left and name.endswith(".json")]
        for id in ended:
            del left[id]
            yield id, json.loads((outcomes / f"{id}.json").read_text())
        patience = LOST_SECONDS if cancelled is None else CANCEL_SECONDS
        given_up = cancelled is not None and now - cancelled >= LOST_SECONDS
        for task in dict.fromkeys(left.values()):
            if alive is None or task in alive:
                gone.pop(task, None)
            elif now - gone.setdefault(task, now) < patience:
                continue
            if task in gone or given_up:
                outcome = _lost(task, queue) if cancelled is None else INTERRUPTED_OUTCOME
                for id in [id for id, own in left.items() if own == task]:
                    del left[id]
                    yield id, outcome
        interval = POLL_SECONDS[0] if ended or cancelled is not None or gone else min(1.5 * interval, POLL_SECONDS[1])
        if left:
            _wait(interval, cancelled is not None)


def _lost(task: str, queue: Queue) -> Outcome:
    text = f"SLURM's job {task} is gone without a result of this pair{queue.end_of(task)}: cancelled, out of memory, or its node failed"
    return failure_outcome("lost", f"{text}; see logs/, and run again with --resume", 1)


def _wait(seconds: float, stopping: bool) -> None:
    """Sleep, but end early if the batch is interrupted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (stopping or not stop.is_set()):
        time.sleep(min(0.2, seconds))
