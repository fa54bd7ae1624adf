"""Signals: Ctrl-C, SIGTERM, and SIGHUP, which comes when the terminal is closed or the connection is lost."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from rdmm import io
from rdmm.cli import main
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.registration.images import Registration
from rdmm.runtime.interrupt import interruptible, stop

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.fault(48, 49, 109)
@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_stops_the_search(number, capsys):
    before = {s: signal.getsignal(s) for s in SIGNALS}
    with interruptible("saved") as seen:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set() and seen == {"signal": number}
    assert "interrupted: saved" in capsys.readouterr().err and not stop.is_set()
    assert {s: signal.getsignal(s) for s in SIGNALS} == before


@pytest.mark.fault(48, 49, 109)
@pytest.mark.parametrize(("first", "second", "ends"), [
    (signal.SIGINT, signal.SIGINT, True),
    (signal.SIGTERM, signal.SIGINT, True),
    (signal.SIGHUP, signal.SIGHUP, False),
    (signal.SIGTERM, signal.SIGHUP, False),
    (signal.SIGHUP, signal.SIGINT, True),
])  # fmt: skip
def test_the_second_ends_the_process_unless_a_lost_terminal_sent_it(monkeypatch, first, second, ends):
    """The kernel and the shell each send SIGHUP when a terminal is closed: that is no request to hurry."""
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    with interruptible() as seen:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
    assert seen == {"signal": first} and codes == ([128 + second] if ends else [])


@pytest.mark.fault(109)
def test_nohup_keeps_its_promise():
    """A process that ignores SIGHUP, as nohup makes it, goes on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as seen:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set() and not seen
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.fault(109)
def test_a_lost_terminal_costs_nothing(tmp_path):
    """The terminal closes during the search: its progress bar and messages have nowhere to go; the best result is written, code 129."""
    pair, _, _ = shapes_pair(1, (64, 64))
    for name, image in (("f", pair.fixed), ("m", pair.moving)):
        io.write_image(tmp_path / f"{name}.nii.gz", image.data, image.grid)
    keys = ["dynamics=lddmm", "affine=none", "optimizer.scales=[1.0]", "optimizer.tolerance=0", "optimizer.iterations=[100000]"]
    words = [sys.executable, "-m", "rdmm", "register", f"{tmp_path}/f.nii.gz", f"{tmp_path}/m.nii.gz", "-o", f"{tmp_path}/out/", *keys]
    shell, terminal = pty.fork()
    if shell == 0:  # a login shell: the kernel sends SIGHUP to it, and it sends SIGHUP to its jobs
        job = subprocess.Popen(words)
        signal.signal(signal.SIGHUP, lambda number, _: job.send_signal(number))
        (tmp_path / "code").write_text(str(job.wait()))
        os._exit(0)
    shown = b""
    while b"level 0" not in shown:
        shown += os.read(terminal, 10_000)
    time.sleep(0.5)
    os.close(terminal)
    os.waitpid(shell, 0)
    assert (tmp_path / "code").read_text() == "129"
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "interrupted"
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.fault(48, 49)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_files_are_written(images, tmp_path, monkeypatch, capsys, number):
    """The search has ended: the run is done, and code, run.json and the last words say so."""
    compute = Registration.compute
    monkeypatch.setattr(Registration, "compute", lambda self: (compute(self), os.kill(os.getpid(), number)))
    words = ["register", f"{images}/f.nii.gz", f"{images}/m.nii.gz", "-o", f"{tmp_path}/", "affine=none", "optimizer.iterations=[1,1,1]"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (ended.value.code, run["status"]) == (0, "done") and "interrupted" not in "".join(run["reasons"])
    assert "the search had ended before the interruption: the result is complete" in capsys.readouterr().err
