"""Threads that wait do not hold a core: the processor is free for other work, whoever loads torch first."""

import os
import subprocess
import sys

import pytest

from rdmm.runtime import threads

SPINNING = """
import time
begin = time.process_time()
x = torch.ones(200_000)
for _ in range(100):
    x.neg_()
    time.sleep(0.001)
print(time.process_time() - begin)
"""
"""Two threads share a hundred short steps, and wait between them; threads that spin take some half a second of CPU time, others .02 s."""


def cpu_seconds(imports: str, **environment: str) -> float:
    """CPU seconds of SPINNING in a new process, after ``imports``."""
    kept = {k: v for k, v in os.environ.items() if k not in threads.OWN_CHOICES}
    code = f"{imports}\ntorch.set_num_threads(2){SPINNING}"
    ended = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    return float(ended.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="waits elsewhere are not measured")
@pytest.mark.parametrize("imports", ["import rdmm, torch", "import torch, rdmm"])
def test_threads_that_wait_take_no_time(imports):
    assert cpu_seconds(imports) < 0.15


def test_a_choice_of_the_user_is_respected(monkeypatch):
    for name in threads.OWN_CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    threads.wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    threads.wait_asleep()
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize("program", ["train", "eval", "networks"])
def test_programs_choose_before_they_load_torch(program):
    """A package's first import is rdmm, whatever its modules import."""
    code = f"import {program}, os, sys; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    kept = {k: v for k, v in os.environ.items() if k not in threads.OWN_CHOICES}
    said = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split() == ["passive", "False"]
