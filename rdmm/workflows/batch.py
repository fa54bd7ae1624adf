"""Many pairs, each on its own: one that fails costs nothing but itself, and what is done is done once.

Under the output folder: a folder of results for each pair, ``table.csv``, ``failures.json``, ``index.html``, and ``logs/``. A shard i of
n puts ``_iofn`` behind the names of its table and failures.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rdmm import io
from rdmm.data.pair_list import Row, read_pairs
from rdmm.io import Outputs
from rdmm.registration.entry import Settings
from rdmm.registration.record import nan_to_null, table_metrics, warning_text
from rdmm.runtime.resources import available_memory
from rdmm.types import ConfigError, OutputError, RdmmError
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import Launcher, Local, Outcome, Submitit
from rdmm.workflows.reports import write_index

log = logging.getLogger(__name__)

LEADING_COLUMNS = ("id", "status", "exit_code", "message", "seconds", "peak_memory_mb")


RESERVED_NAMES = ("logs", "table.csv", "failures.json", "index.html")


@dataclass(frozen=True)
class Batch:
    """What is run and where; ``job`` holds what all pairs share.

    Args:
        pairs: CSV or Learn2Reg JSON (read_pairs).
        root: folder of the paths in it; by default its own.
        shard: (i, n): of the rows, every n-th from the i-th (1 <= i <= n).
    """

    pairs: str
    out: str
    job: Job = field(default_factory=lambda: Job("", "", ""))
    root: str | None = None
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        i, n = self.shard
        if not 1 <= i <= n:
            raise ConfigError(f"--shard {i}/{n}: i/n with 1 <= i <= n is wanted, e.g. 1/4")

    def jobs(self) -> dict[str, Job]:
        """The registration of each row of this shard."""
        i, n = self.shard
        rows = read_pairs(self.pairs, self.root)
        taken = [r for r in rows if r.id in RESERVED_NAMES or r.id.startswith(".")]
        if taken:
            raise ConfigError(f"{taken[0].where}: {taken[0].id!r} cannot name a pair: the batch writes {', '.join(RESERVED_NAMES)} itself")
        if n > len(rows):
            raise ConfigError(f"--shard {i}/{n}: there are only {len(rows)} pairs")
        return {row.id: self._of(row) for row in rows[i - 1 :: n]}

    def _of(self, row: Row) -> Job:
        files = {k: str(v) for k, v in row.files.items()}
        fixed, moving = files.pop("fixed"), files.pop("moving")
        return replace(self.job, fixed=fixed, moving=moving, out=str(Path(self.out) / row.id) + "/", inputs={**self.job.inputs, **files})

    def check(self, jobs: Mapping[str, Job]) -> dict[bool, Settings]:
        """The settings of images (False) and of shapes (True), as far as there are any."""
        return {kind: job.settings() for kind, job in {j.for_shapes: j for j in jobs.values()}.items()}

    def path(self, name: str) -> Path:
        """A file of the whole batch, or of this shard."""
        stem, dot, kind = name.partition(".")
        i, n = self.shard
        return Path(self.out) / (f"{stem}_{i}of{n}{dot}{kind}" if n > 1 else name)

    def run(self, launcher: Launcher, *, resume: bool = False, overwrite: bool = False) -> Iterator[tuple[str, Outcome]]:
        """(id, outcome) of every pair as it ends; tables are kept up to date throughout.

        Raises:
            RdmmError: the list, the settings or the folder cannot be used. What is wrong with a pair is its outcome.
        """
        jobs = self.jobs()
        settings = self.check(jobs)
        Outputs.prepare(self.out + os.sep, [], overwrite=True)
        with Outputs(str(self.path("batch."))).locked():
            done = {id: run for id, job in jobs.items() if resume and (run := job.find_finished_run(settings[job.for_shapes])) is not None}
            there = [id for id, job in jobs.items() if Path(job.out, "run.json").exists()]
            if there and not (resume or overwrite):
                raise OutputError(f"{Path(self.out, there[0])}: is there already; --resume goes on, --overwrite begins anew")
            rows = {id: {"status": "done", "message": warning_text(run), "exit_code": 0, **table_metrics(run)} for id, run in done.items()}
            if done:
                log.info("%d of %d pairs are done already", len(done), len(jobs))
            yield from rows.items()
            logs = Path(self.out, "logs")
            logs.mkdir(exist_ok=True)
            left = {id: job for id, job in jobs.items() if id not in done}
            self._write(jobs, rows)
            for id, outcome in launcher(left, logs) if left else ():
                rows[id] = outcome
                self._write(jobs, rows)
                yield id, outcome
            for id in jobs:
                if id not in rows:
                    rows[id] = {"status": "not started", "message": "the batch was interrupted", "exit_code": 130}
                    yield id, rows[id]
            self._write(jobs, rows)
            write_index(Path(self.out))

    def _write(self, jobs: Mapping[str, Job], rows: Mapping[str, Outcome]) -> None:
        """table.csv and failures.json, in the order of the list."""
        table = [{"id": id, **rows[id]} for id in jobs if id in rows]
        io.write_table(self.path("table.csv"), table, LEADING_COLUMNS)
        failures = [
            {**{k: r[k] for k in ("id", "status", "message", "exit_code")}, **_pair_files(jobs[r["id"]])} for r in table if has_failed(r)
        ]
        io.write_atomically(self.path("failures.json"), json.dumps(nan_to_null(failures), indent=1).encode())


def has_failed(row: Mapping[str, Any]) -> bool:
    return row["status"] != "done"


def _pair_files(job: Job) -> dict[str, str]:
    return {"fixed": job.fixed, "moving": job.moving, "out": job.out}


def parallel_jobs(jobs: Mapping[str, Job], wanted: int | None) -> tuple[int, float]:
    """How many pairs are registered at a time, and the GiB that the largest needs: as many as were asked for, or as cores and
    memory allow. A pair whose size is unknown or too large fails on its own.

    Raises:
        ConfigError: fewer than one.
    """
    if wanted is not None and wanted < 1:
        raise ConfigError(f"--jobs must be at least 1, not {wanted}")
    needs = [0]
    for job in jobs.values():
        try:
            needs.append(job.memory())
        except RdmmError:
            continue
    largest = max(needs)
    fitting = max(1, int(0.9 * available_memory() / largest)) if largest else len(jobs)
    chosen = wanted if wanted is not None else os.cpu_count() or 1
    if chosen > fitting:
        log.warning("the largest pair needs about %.1f GiB: %d instead of %d at a time", largest / 2**30, fitting, chosen)
    return max(1, min(chosen, fitting, len(jobs))), largest / 2**30


def choose_launcher(name: str, jobs: Mapping[str, Job], wanted: int | None, slurm: Sequence[str]) -> Launcher:
    """``local`` or ``submitit``, with what --jobs and --slurm say."""
    if name == "local":
        if slurm:
            raise ConfigError("--slurm goes with --launcher submitit")
        number, gib = parallel_jobs(jobs, wanted)
        log.info("%d pairs, %d at a time, each up to about %.2f GiB", len(jobs), number, gib)
        return Local(number)
    wrong = [s for s in slurm if "=" not in s]
    if wrong:
        raise ConfigError(f"--slurm {wrong[0]}: NAME=VALUE is wanted, e.g. partition=cpu")
    _, gib = parallel_jobs(jobs, wanted)
    return Submitit(dict(s.split("=", 1) for s in slurm), 2 + math.ceil(1.5 * gib), wanted or len(jobs))


def parse_shard(text: str | None) -> tuple[int, int]:
    """``i/n``."""
    if text is None:
        return 1, 1
    parts = text.split("/")
    if len(parts) != 2 or not all(p.isdecimal() for p in parts):
        raise ConfigError(f"--shard {text}: i/n is wanted, e.g. 1/4")
    return int(parts[0]), int(parts[1])


SUMMARY_COLUMNS = ("dice", "tre_mm", "folds_percent", "seconds")


def format_outcome(id: str, row: Outcome) -> str:
    """One line of a pair's outcome."""
    if has_failed(row):
        return f"{id}: {row['status']}: {row['message']}"
    warning = f"; warning: {row['message']}" if row["message"] else ""
    return f"{id}: " + ", ".join(f"{k} {row[k]:.4g}" for k in SUMMARY_COLUMNS if k in row) + warning


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a text table, what faults and warnings say under it."""
    columns = [k for k in SUMMARY_COLUMNS if any(k in r for r in rows)]
    lines = [["id", "status", *columns]]
    lines += [[str(r["id"]), str(r["status"]), *(f"{r[k]:.4g}" if k in r else "-" for k in columns)] for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    messages = [f"{r['id']}: {'' if has_failed(r) else 'warning: '}{r['message']}" for r in rows if r["message"]]
    return "\n".join([*text, *([""] if messages else []), *messages])
