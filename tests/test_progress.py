"""Progress of a search, from the optimizer to the bar on a terminal."""

import sys

import rich.progress
import torch

from rdmm import LBFGS, SVF, InitialConditions, MultiGaussian, Problem
from rdmm.cli.terminal import progress
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.runtime.progress import progress_listener, report_progress
from rdmm.similarity import SSD


def search():
    """The history of a short search on two levels."""
    pair, _, _ = shapes_pair(0, (16, 16))
    problem = Problem(SVF(MultiGaussian((0.1,), (1.0,))), SSD())
    _, history = LBFGS(scales=(0.5, 1.0), iterations=(2, 3))(problem, pair, InitialConditions(torch.zeros(1, 2, 16, 16)))
    return [(h["level"], h["iteration"], {0: 2, 1: 3}[h["level"]], h["total"]) for h in history]


def test_every_iteration_is_reported():
    heard, twice = [], []
    with progress_listener(lambda *record: heard.append(record)):
        with progress_listener(lambda *record: twice.append(record)):
            history = search()
        report_progress(9, 1, 1, 0.0)
    report_progress(10, 1, 1, 0.0)  # nobody listens
    assert twice == history and len(history) > 2
    assert heard == [*history, (9, 1, 1, 0.0)]


def test_the_bar_on_a_terminal_shows_every_iteration(monkeypatch):
    shown = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(rich.progress.Progress, "update", lambda bar, task, **fields: shown.append(fields))
    with progress(quiet=False):
        history = search()
    assert [(s["description"], s["completed"], s["total"]) for s in shown] == [(f"level {k}", i, n) for k, i, n, _ in history]
    assert shown[-1]["energy"] == f"energy {history[-1][3]:.5f}"
    shown.clear()
    with progress(quiet=True):
        search()
    assert not shown
