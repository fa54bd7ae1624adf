"""Kernels are compiled once, before the first registration of a machine, and a line says so."""

import logging
import os
from types import SimpleNamespace

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


def test_machine_code_that_is_older_than_its_source_counts_for_nothing(monkeypatch, tmp_path):
    source, code = tmp_path / "loops.py", tmp_path / "loops.walk-3.py311.nbi"
    source.write_text("")
    kernel = SimpleNamespace(
        stats=SimpleNamespace(cache_path=str(tmp_path)),
        __name__="walk",
        py_func=SimpleNamespace(__code__=SimpleNamespace(co_filename=str(source))),
    )
    monkeypatch.setattr(compiled, "_kernels", [kernel])
    assert not compiled.any_cached()
    code.write_text("")
    assert compiled.any_cached()
    os.utime(code, (0, 0))
    assert not compiled.any_cached()


def test_kept_machine_code_needs_no_compiler(monkeypatch):
    """Numba would first read its tables of types and functions, which takes longer than all kernels of a small pair."""
    kernel = sampling._forward
    grid = Grid.unit((4, 4))
    ops.sample(torch.zeros(1, 1, 4, 4), grid.identity(torch.zeros(1)), grid)
    monkeypatch.setattr(type(kernel.targetctx), "refresh", lambda _: pytest.fail("read the tables"))
    assert kernel._cache.load_overload(kernel.signatures[0], kernel.targetctx) is not None
