"""Kernels are compiled once, before the first registration of a machine, and a line says so."""

import logging
import os

import numba
import pytest
import torch
from numba.core import event

from rdmm.kernels import compiled, sampling
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.workflows import compilation


@pytest.fixture(autouse=True)
def _unannounced(monkeypatch):
    monkeypatch.setattr(compiled, "_announced", False)


def lines(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "kernels" in r.getMessage()]


def compile_event(function) -> None:
    with event.trigger_event("numba:compile", data={"dispatcher": function}):
        pass


def test_the_first_kernel_that_is_compiled_is_announced(caplog):
    """Once, and not if a program's own function is compiled."""
    caplog.set_level(logging.INFO, "rdmm")
    compile_event(numba.njit(lambda x: x))
    assert lines(caplog) == []
    compile_event(sampling._forward)
    compile_event(sampling._forward)
    (line,) = lines(caplog)
    assert "compiled" in line and "once" in line


def test_kernels_are_compiled_ahead_where_none_is_cached(monkeypatch, caplog):
    """By a registration of its own, of which nothing is said; with no effect on the one that was asked for."""
    caplog.set_level(logging.INFO, "rdmm")
    calls = []
    register = compilation.register
    monkeypatch.setattr(compilation, "register", lambda *a, **k: calls.append(register(*a, **k)))
    monkeypatch.setattr(compiled, "any_cached", lambda: True)
    compilation.compile_ahead()
    assert not calls and not caplog.records
    monkeypatch.setattr(compiled, "any_cached", lambda: False)
    compilation.compile_ahead()
    (done,) = calls
    assert done.is_deformed and done.affine_part is not None
    assert [r.getMessage() for r in caplog.records] == lines(caplog) and len(lines(caplog)) == 1
    assert logging.getLogger("rdmm").level == logging.INFO


def test_machine_code_of_other_sources_counts_for_nothing(monkeypatch):
    """Neither a new time of a file makes kept code old, nor is code in use that was made of other sources."""
    ops.sample(torch.rand(1, 1, 4, 5), torch.rand(1, 2, 3, 3), Grid.unit((4, 5)))
    assert compiled.any_cached()
    os.utime(sampling.__file__)
    assert compiled.any_cached()
    for kernel in compiled._kernels:
        monkeypatch.setattr(kernel._cache._cache_file, "_source_stamp", "of another version")
    assert not compiled.any_cached()
