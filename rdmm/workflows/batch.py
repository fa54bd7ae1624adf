"""Register many pairs, each in its own process: a failure does not affect the others, and finished pairs are skipped on resume.

The output folder gets one folder of results per pair, ``table.csv``, ``failures.json``, ``index.html`` and ``logs/``. Shard i of n
writes ``table_iofn.csv`` and ``failures_iofn.json`` instead.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rdmm import io
from rdmm.data.pair_list import Row, noted, read_pairs
from rdmm.io import Outputs
from rdmm.io.files import require_free
from rdmm.registration.entry import Settings
from rdmm.registration.record import nan_to_null, table_row
from rdmm.runtime.occasionally import Occasionally
from rdmm.runtime.resources import available_memory
from rdmm.types import ConfigError, OutputError, RdmmError, counted
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import Launcher, Local, Outcome, failure_outcome
from rdmm.workflows.reports import write_index
from rdmm.workflows.slurm import Slurm, has_slurm, parse_options, require_submitit

log = logging.getLogger(__name__)

LEADING_COLUMNS = ("id", "status", "verdict", "exit_code", "message", "seconds", "peak_memory_mb")

RESERVED_NAMES = re.compile(r"\..*|logs|(table(_\d+of\d+)?\.csv)|(failures(_\d+of\d+)?\.json)|index\.html", re.IGNORECASE)
"""Names in the output folder that no pair can have: those of the batch's own files, with and without shards."""

SLURM_BASE_GIB, SLURM_MEMORY_FACTOR = 2, 1.5
"""Memory requested per job: this much for the libraries, and the estimated peak times this factor, as SLURM kills jobs that exceed it."""


@dataclass(frozen=True)
class Batch:
    """The pairs to register and the output folder.

    Args:
        pairs: CSV or Learn2Reg JSON (read_pairs).
        out: output folder.
        job: settings and options that all pairs share.
        root: folder that the paths in ``pairs`` are relative to; by default the folder of ``pairs``.
        shard: (i, n): every n-th row, starting at the i-th (1 <= i <= n).
    """

    pairs: str
    out: str
    job: Job = field(default_factory=lambda: Job("", "", ""))
    root: str | None = None
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if not self.out:
            raise ConfigError("-o is an empty text; name a folder for the results")
        i, n = self.shard
        if not 1 <= i <= n:
            raise ConfigError(f"--shard {i}/{n}: must be i/n with 1 <= i <= n, e.g. 1/4")

    def jobs(self) -> dict[str, Job]:
        """The job of each row of this shard, by the pair's id.

        Raises:
            ConfigError: the list cannot be used, or has fewer rows than there are shards.
        """
        i, n = self.shard
        rows = read_pairs(self.pairs, self.root)
        taken = [r for r in rows if RESERVED_NAMES.fullmatch(r.id)]
        if taken:
            raise ConfigError(
                f"{taken[0].where}: {taken[0].id!r} cannot be an id: logs, index.html, the names of tables (table.csv, table_1of2.csv, "
                "failures.json, failures_1of2.json), and names that start with a dot, are reserved"
            )
        if n > len(rows):
            raise ConfigError(f"--shard {i}/{n}: the list has only {counted(len(rows), 'pair')}; use at most {counted(len(rows), 'shard')}")
        return {row.id: self._job(row) for row in rows[i - 1 :: n]}

    def _notes(self) -> dict[str, Mapping[str, str]]:
        """The columns of the list that rdmm does not know, such as age, of each row by the pair's id."""
        return {row.id: row.notes for row in read_pairs(self.pairs, self.root)}

    def _job(self, row: Row) -> Job:
        files = {k: str(v) for k, v in row.files.items()}
        fixed, moving = files.pop("fixed"), files.pop("moving")
        inputs = {**self.job.inputs, **files, "also": row.also}
        return replace(self.job, fixed=fixed, moving=moving, out=str(Path(self.out) / row.id) + "/", inputs=inputs)

    def settings(self, jobs: Mapping[str, Job]) -> dict[bool, Settings]:
        """The settings for images (key False) and for shapes (key True), if the batch has any. Raises ConfigError."""
        example = {job.for_shapes: job for job in jobs.values()}
        return {for_shapes: job.settings() for for_shapes, job in example.items()}

    def path(self, name: str) -> Path:
        """Path of a file of the batch; with shards, the name has the shard's suffix."""
        stem, dot, kind = name.partition(".")
        i, n = self.shard
        return Path(self.out) / (f"{stem}_{i}of{n}{dot}{kind}" if n > 1 else name)

    def unusable(self, jobs: Mapping[str, Job]) -> dict[str, Outcome]:
        """The outcomes of pairs that cannot be registered: an input file is missing, or the id is too long for the name of a file."""
        out = {}
        for id, job in jobs.items():
            try:
                require_free(Path(self.out, "logs", f"{id}.txt"), overwrite=True)
                job.require_files()
            except RdmmError as error:
                out[id] = failure_outcome(type(error).__name__, str(error), error.exit_code)
        return out

    def check(self, jobs: Mapping[str, Job], *, resume: bool, overwrite: bool) -> dict[str, Outcome]:
        """Check all that a run checks before it computes anything (``--dry-run``). Returns the outcomes of pairs that would fail, by id.

        Raises:
            RdmmError: the settings or the output folder cannot be used, so that no pair would be registered.
        """
        self.settings(jobs)
        Outputs.check(self.out + os.sep, [], overwrite=True)
        self._require_new(jobs, resume or overwrite)
        out = self.unusable(jobs)
        for id, job in jobs.items():
            if id not in out:
                try:
                    job.check(overwrite=True)
                except RdmmError as error:
                    out[id] = failure_outcome(type(error).__name__, str(error), error.exit_code)
        return out

    def _require_new(self, jobs: Mapping[str, Job], go_on: bool) -> None:
        existing = [id for id, job in jobs.items() if os.path.exists(os.path.join(job.out, "run.json"))]
        if existing and not go_on:
            raise OutputError(f"{Path(self.out, existing[0])}: already exists; use --resume to continue, or --overwrite to start again")

    def run(
        self, launcher: Launcher, *, resume: bool = False, overwrite: bool = False, verify: bool = False
    ) -> Iterator[tuple[str, Outcome]]:
        """Yield (id, outcome) of every pair when it ends. table.csv and failures.json are written along the way (Occasionally).

        Args:
            resume: skip finished pairs.
            verify: read all files of finished pairs, also those that look unchanged.

        Raises:
            RdmmError: the list, the settings or the output folder cannot be used. An error of a single pair is part of its outcome.
        """
        jobs = self.jobs()
        settings, notes = self.settings(jobs), self._notes()
        names = [self.path("table.csv").name, self.path("failures.json").name, "index.html"]
        Outputs.prepare(self.out + os.sep, names, overwrite=True)
        with Outputs(str(self.path("batch."))).locked():
            rows = self._finished_rows(jobs, settings, verify) if resume else {}
            self._require_new(jobs, resume or overwrite)
            if rows:
                log.info("%d of %d pairs are already finished", len(rows), len(jobs))
            logs = Path(self.out, "logs")
            Outputs.prepare(f"{logs}{os.sep}", [], overwrite=True)
            rows |= self.unusable({id: job for id, job in jobs.items() if id not in rows})
            yield from list(rows.items())
            left = {id: replace(job, config=settings[job.for_shapes].config) for id, job in jobs.items() if id not in rows}
            with Occasionally(lambda: self._write(jobs, rows, notes)) as write:
                write()
                for id, outcome in launcher(left, logs) if left else ():
                    rows[id] = outcome
                    write()
                    yield id, outcome
                for id in jobs:
                    if id not in rows:
                        rows[id] = failure_outcome("not started", "the batch was interrupted", 130)
                        write()
                        yield id, rows[id]
            write_index(Path(self.out))

    def _finished_rows(self, jobs: Mapping[str, Job], settings: Mapping[bool, Settings], verify: bool) -> dict[str, Outcome]:
        """The outcomes of pairs that an earlier run finished with the same settings."""
        rows = {}
        for id, job in jobs.items():
            run = job.find_finished_run(settings[job.for_shapes], verify=verify)
            if run is not None:
                rows[id] = table_row(run)
        return rows

    def _write(self, jobs: Mapping[str, Job], rows: Mapping[str, Outcome], notes: Mapping[str, Mapping[str, str]]) -> None:
        """Write table.csv and failures.json, in the order of the list. Notes follow the results."""
        taken = {"id"}.union(*rows.values())
        table = [{"id": id, **rows[id], **noted(notes[id], taken)} for id in jobs if id in rows]
        io.write_table(self.path("table.csv"), table, LEADING_COLUMNS)
        failures = [_failure_record(row, jobs[row["id"]]) for row in table if has_failed(row)]
        io.write_atomically(self.path("failures.json"), json.dumps(nan_to_null(failures), indent=1).encode())


def has_failed(row: Mapping[str, Any]) -> bool:
    """Whether an outcome is not ``done``."""
    return row["status"] != "done"


def _failure_record(row: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """An entry of failures.json."""
    outcome = {k: row[k] for k in ("id", "status", "message", "exit_code")}
    return {**outcome, "fixed": job.fixed, "moving": job.moving, "out": job.out}


def parallel_jobs(jobs: Mapping[str, Job], wanted: int | None) -> tuple[int, float]:
    """The number of pairs to register at the same time on this machine, and the memory (GiB) that the largest needs.

    Args:
        wanted: --jobs; None: the number of cores. Free memory may reduce either.

    Raises:
        ConfigError: ``wanted`` is less than 1.
    """
    _check_wanted(wanted)
    largest = _largest(job.memory for job in jobs.values())
    fitting = max(1, int(0.9 * available_memory() / largest)) if largest else len(jobs)
    chosen = wanted if wanted is not None else os.cpu_count() or 1
    if chosen > fitting:
        log.warning("the largest pair needs about %.1f GiB: %d pairs run at the same time instead of %d", largest / 2**30, fitting, chosen)
    return max(1, min(chosen, fitting, len(jobs))), largest / 2**30


def _check_wanted(wanted: int | None) -> None:
    if wanted is not None and wanted < 1:
        raise ConfigError(f"--jobs must be at least 1; got {wanted}")


def _largest(estimates: Iterable[Callable[[], int]]) -> int:
    """The largest of the estimates of memory. Pairs whose size is unknown or too large are ignored here; each fails on its own."""
    needs = [0]
    for estimate in estimates:
        with contextlib.suppress(RdmmError):
            needs.append(estimate())
    return max(needs)


def choose_launcher(name: str, jobs: Mapping[str, Job], wanted: int | None, slurm: Sequence[str]) -> Launcher:
    """The launcher ``local`` or ``submitit``, with the options --jobs (``wanted``) and --slurm (NAME=VALUE).

    Without SLURM on this machine, ``submitit`` is ``local``, with a warning.

    Raises:
        ConfigError: an option cannot be used.
    """
    if slurm and name == "local":
        raise ConfigError("--slurm works only with --launcher submitit")
    options = parse_options(slurm)
    if name == "submitit":
        require_submitit()
        if has_slurm():
            _check_wanted(wanted)
            gib = _largest(job.memory_elsewhere for job in jobs.values()) / 2**30
            return Slurm(options, SLURM_BASE_GIB + math.ceil(SLURM_MEMORY_FACTOR * gib), wanted)
        log.warning("there is no SLURM here (no sbatch and srun on the PATH): the pairs run on this machine")
    number, gib = parallel_jobs(jobs, wanted)
    log.info("%s, %d at the same time, each needs up to about %.2f GiB", counted(len(jobs), "pair"), number, gib)
    return Local(number)


def parse_shard(text: str | None) -> tuple[int, int]:
    """Parse --shard i/n; (1, 1) if it is not given."""
    if text is None:
        return 1, 1
    parts = text.split("/")
    if len(parts) != 2 or not all(p.isdecimal() for p in parts):
        raise ConfigError(f"--shard {text}: must be i/n, e.g. 1/4")
    return int(parts[0]), int(parts[1])


SUMMARY_COLUMNS = ("dice", "tre_mm", "sd_log_jacobian_subject", "folds_percent", "seconds")
"""Metrics that the terminal shows of each pair; table.csv has all."""


def format_outcome(id: str, row: Outcome) -> str:
    """One line about a pair's outcome."""
    if has_failed(row):
        return f"{id}: {row['status']}: {row['message']}"
    warning = f"; warning: {row['message']}" if row["message"] else ""
    numbers = [f"{k} {row[k]:.4g}" for k in SUMMARY_COLUMNS if k in row]
    return f"{id}: " + ", ".join([*([row["verdict"]] if row.get("verdict") else []), *numbers]) + warning


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a text table, followed by the messages of errors and warnings."""
    columns = [k for k in SUMMARY_COLUMNS if any(k in r for r in rows)]
    lines = [["id", "status", "verdict", *columns]]
    for row in rows:
        numbers = [f"{row[k]:.4g}" if k in row else "-" for k in columns]
        lines.append([str(row["id"]), str(row["status"]), str(row.get("verdict") or "-"), *numbers])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    messages = [f"{r['id']}: {'' if has_failed(r) else 'warning: '}{r['message']}" for r in rows if r["message"]]
    if messages:
        text += ["", *messages]
    return "\n".join(text)
