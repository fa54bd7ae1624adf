"""Launchers run the jobs of a batch; here, in processes of this machine. A crash of one job does not affect the others.

A launcher takes named jobs and yields (name, outcome) when each ends, in any order. An outcome is a row of the batch's table:
``status`` (done, interrupted, or the error's name), ``message``, ``exit_code``, and the metrics if there is a result.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rdmm.registration.record import table_row
from rdmm.runtime.interrupt import interruptible, stop
from rdmm.runtime.memory import memory_errors
from rdmm.types import RdmmError, options_are_typed
from rdmm.workflows.compilation import compile_ahead
from rdmm.workflows.job import Job

Outcome = dict[str, Any]
Launcher = Callable[[Mapping[str, Job], Path], Iterator[tuple[str, Outcome]]]

PRELOADED_MODULES = [
    "rdmm.workflows.launchers",
    "rdmm.registration.shapes",
    "rdmm.report.images",
    "rdmm.report.html",
    "rdmm.kernels.preloaded",
    "filelock",
    "safetensors.torch",
]
"""Modules imported once in the fork server. They must not start threads, because a fork does not copy threads."""

PRELOADED_FOR_SHAPES = ["rdmm.io.meshes.files", "rdmm.report.shape_figures", "matplotlib.backends.backend_agg"]
"""More of them, where shapes are registered."""

POLL_SECONDS = 0.2
"""Interval at which launchers check whether the batch was interrupted."""


def run_job(job: Job) -> Outcome:
    """Run one job and return its outcome. Errors are returned, not raised. A worker's process names options as the command line does."""
    try:
        with options_are_typed(), memory_errors():
            settings = job.settings()
            inputs = job.read()
            with job.reserve_outputs(settings, overwrite=True), interruptible("writing the best result so far"):
                done, _, summary = job.run(inputs, settings)
        job.check_folding(done.metrics)
    except RdmmError as error:
        return failure_outcome(type(error).__name__, str(error), error.exit_code)
    except Exception as error:
        logging.getLogger("rdmm").exception("unexpected")
        return failure_outcome(type(error).__name__, f"unexpected: {error}", 1)
    return table_row(summary)


def failure_outcome(status: str, message: str, code: int) -> Outcome:
    """The outcome of a job without a result."""
    return {"status": status, "message": message, "exit_code": code}


INTERRUPTED_OUTCOME = failure_outcome("interrupted", "the batch was interrupted", 130)


@dataclass(frozen=True)
class Local:
    """Run each pair in its own process, forked from a server process that has only imported the library.

    Args:
        jobs: number of processes at the same time.
    """

    jobs: int

    def __call__(self, jobs: Mapping[str, Job], logs: Path) -> Iterator[tuple[str, Outcome]]:
        if not all(job.for_shapes for job in jobs.values()):
            compile_ahead()
        context = worker_context(for_shapes=any(job.for_shapes for job in jobs.values()))
        waiting, running = list(jobs.items()), dict[Connection, tuple[str, Any]]()
        asked_to_stop = False
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
                    if not asked_to_stop:
                        asked_to_stop = True
                        for worker in running:
                            worker.send("stop")  # the worker then writes its best result so far
                for connection in wait(list(running), POLL_SECONDS):
                    assert isinstance(connection, Connection)
                    name, process = running.pop(connection)
                    yield name, _receive_outcome(connection, process)
        finally:
            for _, process in running.values():
                process.kill()


def worker_context(*, for_shapes: bool = False) -> Any:
    """How worker processes start: forked from a server process that has imported PRELOADED_MODULES, where the system has that.

    Args:
        for_shapes: PRELOADED_FOR_SHAPES, too.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([*PRELOADED_MODULES, *(PRELOADED_FOR_SHAPES if for_shapes else [])])
    return context


def _receive_outcome(connection: Connection, process: Any) -> Outcome:
    """Receive the outcome that a worker sent; if it died instead, describe how."""
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
    hint = "; it may have run out of memory: try fewer --jobs" if code == -signal.SIGKILL else "; see its file in logs/"
    return failure_outcome("killed", f"the process of this pair was ended by {by}{hint}", 1)


def _run_worker(job: Job, connection: Connection, log: Path) -> None:
    """Main function of a worker process: run one pair, write all output to ``log``. It ends when the batch's process ends."""
    gc.freeze()  # the server's modules are no garbage, and looking at them would copy their memory
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
    """Stop the search when the batch sends a message. Kill this process when the pipe closes: the batch's process has ended."""
    with contextlib.suppress(EOFError, OSError):
        while connection.recv():
            stop.set()
    os.kill(os.getpid(), signal.SIGKILL)
