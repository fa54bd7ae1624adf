"""Where the jobs of a batch run: in processes of this machine, or through a scheduler. A job that dies takes nobody with it.

A launcher takes named jobs and yields (name, outcome) as they end, in any order. An outcome is a row of the batch's table:
``status`` (done, interrupted, or the fault's name), ``message`` and ``exit_code``, and of a result its measures.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rdmm import kernels
from rdmm.registration.record import table_metrics, warning_text
from rdmm.runtime.interrupt import interruptible, stop
from rdmm.types import ConfigError, RdmmError
from rdmm.workflows.job import Job

Outcome = dict[str, Any]


Launcher = Callable[[Mapping[str, Job], Path], Iterator[tuple[str, Outcome]]]

PRELOADED_MODULES = [
    "rdmm.workflows.launchers",
    "rdmm.registration.shapes",
    "rdmm.report.shape_figures",
    "hydra._internal.hydra",
    *(f"rdmm.kernels.{name}" for _, name, _ in pkgutil.iter_modules(kernels.__path__)),
]
"""What every process would load for itself otherwise; nothing of it starts threads, which a fork would not take along."""

POLL_SECONDS = 0.2
"""Between two looks at whether the batch was interrupted."""


def run_job(job: Job) -> Outcome:
    """Run one job and tell how it ended; faults are values here."""
    try:
        settings = job.settings()
        inputs = job.read()
        with job.reserve_outputs(settings, overwrite=True), interruptible("writing the best result so far"):
            done, _, summary = job.run(inputs, settings)
        job.check_folding(done.metrics)
    except RdmmError as error:
        return failure_outcome(type(error).__name__, str(error), error.exit_code)
    except MemoryError as error:
        return failure_outcome("ResourceError", f"out of memory ({error}); fewer --jobs, or smaller images", 3)
    except Exception as error:
        logging.getLogger("rdmm").exception("unexpected")
        return failure_outcome(type(error).__name__, f"unexpected: {error}", 1)
    code = 130 if done.status == "interrupted" else 0
    return {"status": done.status, "message": warning_text(summary), "exit_code": code, **table_metrics(summary)}


def failure_outcome(status: str, message: str, code: int) -> Outcome:
    return {"status": status, "message": message, "exit_code": code}


INTERRUPTED_OUTCOME = failure_outcome("interrupted", "the batch was interrupted", 130)


@dataclass(frozen=True)
class Local:
    """``jobs`` processes at a time, one for each pair, forked from a process that has only imported the library."""

    jobs: int

    def __call__(self, jobs: Mapping[str, Job], logs: Path) -> Iterator[tuple[str, Outcome]]:
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(PRELOADED_MODULES)
        waiting, running = list(jobs.items()), dict[Connection, tuple[str, Any]]()
        told = False
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs and not stop.is_set():
                    name, job = waiting.pop(0)
                    here, there = context.Pipe()
                    process = context.Process(target=_run_worker, args=(job, there, logs / f"{name}.txt"), daemon=True)
                    process.start()
                    there.close()
                    running[here] = (name, process)
                if stop.is_set():
                    waiting = []
                    if not told:
                        told = True
                        for worker in running:
                            worker.send("stop")  # each writes its best result so far
                for connection in wait(list(running), POLL_SECONDS):
                    assert isinstance(connection, Connection)
                    name, process = running.pop(connection)
                    yield name, _receive_outcome(connection, process)
        finally:
            for _, process in running.values():
                process.kill()


def _receive_outcome(connection: Connection, process: Any) -> Outcome:
    """What a worker sent, or how it died."""
    try:
        result: Outcome = connection.recv()
        process.join()
        return result
    except (EOFError, OSError):
        process.join()
    finally:
        connection.close()
    if stop.is_set():
        return INTERRUPTED_OUTCOME
    code = process.exitcode
    by = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    hint = "; it may have been out of memory: try fewer --jobs" if code == -signal.SIGKILL else "; its log tells more"
    return failure_outcome("killed", f"the process of this pair was ended by {by}{hint}", 1)


def _run_worker(job: Job, connection: Connection, log: Path) -> None:
    """The process of one pair. What it says goes to its log; it ends with the process that started it."""
    sys.stdout.flush()
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("rdmm").setLevel(logging.INFO)
    threading.Thread(target=_watch_batch, args=(connection,), daemon=True).start()
    result = run_job(job)
    with contextlib.suppress(BrokenPipeError):
        connection.send(result)


def _watch_batch(connection: Connection) -> None:
    """A message asks for the best result so far; the pipe's end is the end of the batch's own process."""
    with contextlib.suppress(EOFError, OSError):
        while connection.recv():
            stop.set()
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Submitit:
    """Jobs of a SLURM cluster (without one: processes of this machine), each pair its own.

    Args:
        options: of sbatch, e.g. {"partition": "cpu", "time": 60}.
        gib: memory of one job.
        at_once: jobs that may run at a time.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    gib: int = 8
    parallel_jobs: int = 100

    def __call__(self, jobs: Mapping[str, Job], logs: Path) -> Iterator[tuple[str, Outcome]]:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("--launcher submitit needs the extra: pip install 'rdmm[slurm]'") from error
        executor = submitit.AutoExecutor(folder=logs / "submitit")
        threads = max((job.threads or 1) for job in jobs.values())
        common = {"name": "rdmm", "cpus_per_task": threads, "mem_gb": self.gib, "timeout_min": 240}
        try:
            executor.update_parameters(
                **common, slurm_array_parallelism=self.parallel_jobs, **{f"slurm_{k}": v for k, v in self.options.items()}
            )
        except (NameError, ValueError, TypeError) as error:
            raise ConfigError(f"--slurm: {error}") from error
        tasks = dict(zip(jobs, executor.map_array(run_job, list(jobs.values())), strict=True))
        try:
            while tasks and not stop.is_set():
                ended = [name for name, task in tasks.items() if task.done()]
                for name in ended:
                    yield name, _collect_outcome(tasks.pop(name))
                time.sleep(POLL_SECONDS)
        finally:
            for task in tasks.values():
                task.cancel()
        yield from ((name, INTERRUPTED_OUTCOME) for name in tasks)


def _collect_outcome(task: Any) -> Outcome:
    try:
        result: Outcome = task.result()
        return result
    except Exception as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return failure_outcome("killed", f"job {task.job_id} ended without a result: {last}", 1)
