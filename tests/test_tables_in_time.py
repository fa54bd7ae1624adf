"""Growing tables cost a small share of the time; resuming a batch reads what may have changed, not everything."""

import contextlib
import csv
import os
from pathlib import Path

import pytest
from test_batch import FAST, make_pairs, write_list

from rdmm.runtime import occasionally
from rdmm.runtime.occasionally import SHARE, Occasionally
from rdmm.workflows import job as job_module
from rdmm.workflows.batch import Batch
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import Local


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(occasionally.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(("rows", "seconds", "cost"), [(20_000, 1.0, 1e-4), (2000, 0.01, 1e-3), (50, 10.0, 1e-3)])
def test_the_cost_of_a_table_is_a_share_of_the_time(monkeypatch, rows, seconds, cost):
    """A row every ``seconds``, and a table that takes ``cost`` for each of its rows: never much more than the share."""
    clock, written, spent = Clock(monkeypatch), [], [0.0]
    table = []

    def write():
        written.append(len(table))
        spent[0] += cost * len(table)
        clock.now += cost * len(table)

    with Occasionally(write) as writes:
        for _ in range(rows):
            clock.now += seconds
            table.append(1)
            writes()
    assert written[-1] == rows
    assert spent[0] - cost * rows <= 5 * SHARE * clock.now  # each writing is longer than the one that its pause was chosen by
    if rows == 50:
        assert written == list(range(1, 51))


def test_what_was_not_written_is_written_when_the_work_ends_early(monkeypatch):
    clock, written = Clock(monkeypatch), []

    def write():
        clock.now += 1.0
        written.append(len(rows))

    rows: list[int] = []
    with contextlib.suppress(KeyboardInterrupt), Occasionally(write) as writes:
        for _ in range(5):
            rows.append(0)
            writes()
        raise KeyboardInterrupt
    assert written == [1, 5]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    path = write_list(folder, make_pairs(folder, 2))
    batch = Batch(str(path), str(folder / "out"), Job("", "", "", FAST, threads=1))
    assert [o["status"] for o in dict(batch.run(Local(2))).values()] == ["done", "done"]
    return batch


def finished(batch, monkeypatch, **more):
    """The pairs that count as finished, and the result files that were read to say so."""
    read = []
    checksum = job_module.sha256
    monkeypatch.setattr(job_module, "sha256", lambda path: read.append(str(path)) or checksum(path))
    jobs = batch.jobs()
    names = [id for id, j in jobs.items() if j.find_finished_run(j.settings(), **more)]
    monkeypatch.undo()
    return names, [os.path.basename(p) for p in read if batch.out in p]


@pytest.mark.fault(77)
def test_unchanged_results_are_not_read_again(done, monkeypatch):
    """Their size and times say that nothing was written since run.json; --verify reads them all the same."""
    assert finished(done, monkeypatch) == (["p0", "p1"], [])
    names, read = finished(done, monkeypatch, verify=True)
    assert names == ["p0", "p1"] and "1Warp.nii.gz" in read


@pytest.mark.fault(77)
@pytest.mark.parametrize("change", ["truncated", "replaced by an older file", "emptied", "removed", "one bit, the old time", "touched"])
def test_results_that_may_have_changed_are_read(done, monkeypatch, change):
    """Fault 77: whatever was done to a file, its time of change tells."""
    path = Path(done.out, "p1", "1Warp.nii.gz")
    whole, state = path.read_bytes(), path.stat()
    old = (state.st_atime_ns, state.st_mtime_ns - 10**12)
    if change == "removed":
        path.unlink()
    elif change == "touched":
        os.utime(path)
    else:
        data = {"truncated": whole[:-20], "emptied": b"", "one bit, the old time": whole[:-1] + bytes([whole[-1] ^ 1])}.get(
            change, b"other"
        )
        other = Path(f"{path}.new")
        other.write_bytes(data)
        os.utime(other, ns=old)
        other.replace(path)
    try:
        names, read = finished(done, monkeypatch)
        assert names == (["p0", "p1"] if change == "touched" else ["p0"])
        assert change == "removed" or read == ["1Warp.nii.gz"]
    finally:
        path.write_bytes(whole)


def test_a_table_has_all_rows_at_the_end(done):
    with open(os.path.join(done.out, "table.csv")) as file:
        assert [r["id"] for r in csv.DictReader(file)] == ["p0", "p1"]


def test_verify_is_for_resume(done, capsys):
    from rdmm.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["batch", done.pairs, "-o", done.out, "--verify"])
    assert ended.value.code == 2 and "--resume" in capsys.readouterr().err
