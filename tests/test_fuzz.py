"""Thousands of hostile inputs of every kind, drawn anew from fixed seeds: each gives a result that keeps the laws, or one RdmmError.

RDMM_FUZZ_CASES is the number of cases of a run. A failure names its kind and number; ``draw("kind", number)`` gives the same case again.
"""

from __future__ import annotations

import logging
import os
import warnings
import zlib

import numpy as np
import pytest
from fuzzing import commands, images, lists, settings, shapes, transforms
from fuzzing.case import Case
from fuzzing.oracle import judge

from rdmm.types import InputError

CASES = int(os.environ.get("RDMM_FUZZ_CASES", "3000"))

GENERATORS = images.GENERATORS | transforms.GENERATORS | shapes.GENERATORS | lists.GENERATORS | settings.GENERATORS | commands.GENERATORS

SHARES = {"image": 4.0, "labels": 2.0, "transform_warp": 2.0, "mesh_vtk": 2.0, "list_run": 0.3, "command": 1.5, "settings": 0.25}
"""How many cases a kind gets for each of another kind."""


def draw(kind: str, number: int) -> Case:
    """The case of this kind and number."""
    return GENERATORS[kind](np.random.default_rng([zlib.crc32(kind.encode()), number]))


@pytest.mark.fault(112)
@pytest.mark.parametrize("kind", GENERATORS)
def test_hostile_inputs(kind):
    """Nothing but an RdmmError in one line of printable text, within five seconds and a gibibyte; and no result that breaks a law."""
    numbers = range(int(CASES * SHARES.get(kind, 1) / sum(SHARES.get(k, 1) for k in GENERATORS)))
    found, refused = [], 0
    for number in numbers:
        case = draw(kind, number)
        fault, refusal = judge(case)
        refused += refusal is not None
        if fault is not None:
            found.append(f"{kind} {number}: {fault} [{case.shown}]")
    assert not found, f"{len(found)} of {len(numbers)}\n" + "\n".join(found[:50])
    assert len(numbers) < 50 or kind.startswith("sound") or 0 < refused < len(numbers)


def loop(folder):
    while True:
        pass


def refuse(folder):
    raise InputError("x" * 2000)


FAULTS = {
    "TooSlowError": loop,
    "MemoryError": lambda folder: np.ones(2**28),
    "ValueError": lambda folder: int("x"),
    "broken law": lambda folder: pytest.fail("broken law"),
    "a warning escapes": lambda folder: warnings.warn("w", RuntimeWarning, stacklevel=1),
    "printable": lambda folder: logging.getLogger("rdmm").warning("a\nb"),
    "a message of 2000": refuse,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_oracle_sees_each_kind_of_fault(fault, monkeypatch):
    monkeypatch.setattr("fuzzing.oracle.SECONDS", 0.2)
    found, _ = judge(Case(FAULTS[fault]))
    assert found is not None and fault in found
    assert judge(Case(lambda folder: None)) == (None, None)
