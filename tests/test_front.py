"""benchmarks/front.py: overlap at equal roughness, from runs that are made once."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import bump

from rdmm import Grid, Image
from rdmm.data.inputs import read_inputs

GRID = Grid.unit((24, 20))


@pytest.fixture
def front(monkeypatch, tmp_path):
    """The script as a module, with one data set of a tiny pair."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    module = importlib.import_module("front")
    pair = [Image(bump(GRID, 0.15, shift).float(), GRID) for shift in (0.0, 0.06)]
    labels = [Image((x.data > 0.4).long(), GRID) for x in pair]

    def read():
        return read_inputs(*pair, fixed_labels=labels[0], moving_labels=labels[1])

    tiny = module.DataSet(lambda: {"a": read, "b": read}, settings=["optimizer.scales=[1]", "optimizer.iterations=[4]", "affine=none"])
    monkeypatch.setattr(module, "DATA_SETS", {"tiny": tiny})
    monkeypatch.setattr(module, "DATA", tmp_path)
    yield module
    sys.modules.pop("front", None)


def row(method: str, strength: str, case: str, rough: float, dice: float) -> dict:
    return {
        "data": "tiny",
        "method": method,
        "settings": "",
        "strength": strength,
        "case": case,
        "dice": dice,
        "sd_log_jacobian_subject": rough,
    }


def test_methods_are_compared_at_equal_roughness(front):
    """Means over the pairs, linear between the strengths, NaN outside; a strength at which a pair is missing is no point of the curve."""
    rows = [
        row("greedy", s, case, rough + d, dice)
        for s, rough, dice in (("3", 0.5, 0.8), ("1", 0.3, 0.7))
        for case, d in (("a", -0.05), ("b", 0.05))
    ]
    (curve,) = front.curves([*rows, row("greedy", "2", "a", 0.1, 0.99)])
    assert [p["strength"] for p in curve.points] == ["1", "3"]
    assert curve.at(0.4, "dice") == pytest.approx(0.75) and curve.at(0.3, "dice") == pytest.approx(0.7)
    assert math.isnan(curve.at(0.29, "dice")) and math.isnan(curve.at(0.51, "dice"))


def test_settings_are_a_curve_of_their_own(front):
    other = row("svf", "1", "a", 0.2, 0.5) | {"settings": "smoother=medium"}
    assert [c.name for c in front.curves([row("svf", "1", "a", 0.3, 0.6), other])] == ["svf", "svf smoother=medium"]


def test_a_missing_tool_is_left_out_and_named(front, monkeypatch, capsys):
    monkeypatch.setattr(front, "METHODS", {**front.METHODS, "lost": front.Method(front.by_syn, ("1",), "no_such_package")})
    planned = front.planned(["tiny"], ["svf", "lost"])
    assert {method for _, method, _, _ in planned} == {"svf"}
    assert "lost is left out: the package no_such_package is not installed" in capsys.readouterr().out


def test_what_was_run_is_not_run_again(front):
    first = front.planned(["tiny"], ["svf"], pairs=1)
    assert all(cases == ["a"] for cases in first.values())
    done = [dict(zip(front.KEYS, (*run, "a"), strict=True)) for run in first]
    assert all(cases == ["b"] for cases in front.planned(["tiny"], ["svf"], done=done).values())
    assert not front.planned(["tiny"], ["svf"], pairs=1, done=done)
    assert front.planned(["tiny"], ["svf"], ["smoother=medium"], 1, done=done)


def test_strengths_can_be_chosen_of_one_method(front, monkeypatch, capsys):
    assert {strength for *_, strength in front.planned(["tiny"], ["svf"], strengths=["0.3"])} == {"0.3"}
    monkeypatch.setattr(sys, "argv", ["front.py", "--strengths", "0.3"])
    with pytest.raises(SystemExit):
        front.main()
    assert "--strengths are those of one method" in capsys.readouterr().err


def test_a_weaker_regularizer_is_rougher_and_the_figure_is_drawn(front, monkeypatch, tmp_path, capsys):
    """The whole script, but for the processes."""

    def in_this_process(script, data, method, strength, *cases_and_options):
        cases = cases_and_options[: cases_and_options.index("--threads")]
        return [{"case": case, **front.measured(data, method, case, strength, 1, [])} for case in cases]

    monkeypatch.setattr(front, "rows_of_worker", in_this_process)
    monkeypatch.setattr(front, "METHODS", {"svf": front.Method(front.METHODS["svf"].register, ("0.2", "2"))})
    monkeypatch.setattr(sys, "argv", ["front.py", f"{tmp_path}/out", "--pairs", "1"])
    front.main()
    first, second = front.read_rows(tmp_path / "out" / "front.jsonl")
    assert first["subject"] == "labels" and 0 < first["sd_log_jacobian_subject"] < second["sd_log_jacobian_subject"]
    assert first["cpu_seconds"] > 0 and first["folds_percent"] == 0
    assert (tmp_path / "out" / "front_tiny.png").stat().st_size > 5000 and "| svf | 0.2 | 1 |" in capsys.readouterr().out
    assert torch.get_num_threads() == 1
