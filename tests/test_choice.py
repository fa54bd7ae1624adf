"""Settings chosen on other cases than the one they are judged on, and studies put together from parts."""

from __future__ import annotations

import json
import math

import pytest

from eval import fronts, tables
from eval.choice import leave_one_out
from eval.main import evaluate
from eval.study import Study, read_parts
from rdmm import ConfigError

FAMILIES = {"a": ["a1", "a2"], "b": ["b1"]}


def rows(numbers):
    """Rows of numbers[method][case]."""
    return [
        {"data": "d", "case": f"c{i}", "method": m, "status": "done", "tre_mm": float(x)}
        for m, values in numbers.items()
        for i, x in enumerate(values)
    ]


def test_no_case_takes_part_in_its_own_choice():
    """a1 is better in the first case only, by much: only the other cases choose it."""
    made = rows({"a1": [0, 3, 3], "a2": [5, 2, 2], "b1": [1, 1, 1]})
    chosen = leave_one_out(made, FAMILIES, "tre_mm")
    assert [(r["method"], r["case"], r["chosen"], r["tre_mm"]) for r in chosen if r["method"] == "a"] == [
        ("a", "c0", "a2", 5.0),
        ("a", "c1", "a1", 3.0),
        ("a", "c2", "a1", 3.0),
    ]
    assert [r["tre_mm"] for r in chosen if r["method"] == "b"] == [1, 1, 1]


def test_larger_dice_is_better():
    made = [{**r, "dice": r.pop("tre_mm")} for r in rows({"a1": [0, 3, 3], "a2": [5, 2, 2], "b1": [1, 1, 1]})]
    assert [r["chosen"] for r in leave_one_out(made, FAMILIES, "dice") if r["method"] == "a"] == ["a1", "a2", "a2"]


def test_a_setting_that_failed_is_not_chosen():
    made = rows({"a1": [1, 1, 1], "a2": [5, 5, 5], "b1": [1, 1, 1]})
    made[1] = {"data": "d", "case": "c1", "method": "a1", "status": "DivergenceError: no"}
    chosen = {r["case"]: r for r in leave_one_out(made, FAMILIES, "tre_mm") if r["method"] == "a"}
    assert chosen["c0"]["chosen"] == chosen["c2"]["chosen"] == "a2"
    assert chosen["c1"]["chosen"] == "a1" and chosen["c1"]["status"].startswith("DivergenceError")


def test_methods_of_no_family_are_compared_as_they_are():
    study = Study(
        {"d": None}, {"c": [], "a": {"vary": {"x": [1, 2]}}, "b1": []}, {}, families={"b": ["b1"]}, choose_by="dice", baseline="c"
    )
    assert study.compared == {"c": ["c"], "a": ["a_1", "a_2"], "b": ["b1"]}


def test_parts_of_a_study_make_one_table(tmp_path):
    made = rows({"a1": [0, 3, 3], "a2": [5, 2, 2], "b1": [1, 1, 1]})
    for i in (0, 1, 2):
        (tmp_path / f"part{i}").mkdir()
        tables.write_tables([r for r in made if r["case"] == f"c{i}"], tmp_path / f"part{i}")
    study = {
        "data": {"d": {"_target_": "rdmm.data.SyntheticShapes"}},
        "methods": {m: [] for m in ("a1", "a2", "b1")},
        "settings": {},
        "families": FAMILIES,
        "choose_by": "tre_mm",
        "parts": [str(tmp_path / f"part{i}") for i in range(3)],
    }
    evaluate({"study": study, "threads": None, "seed": 0, "device": "cpu"}, [], tmp_path)
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == sorted(made, key=lambda r: r["case"])
    assert "| d | a | 3 | 0 |" in (tmp_path / "chosen/table.md").read_text()


@pytest.mark.fault(142)
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"families": {"a": ["a3"]}, "choose_by": "tre_mm"}, "study.families.a: there is no method 'a3'"),
        ({"families": {"a1": ["a1"]}, "choose_by": "tre_mm"}, "study.families: 'a1' is a method"),
        ({"families": {"a": ["a1"]}}, "study.choose_by must be one of"),
        ({"families": {"a": ["a1"]}, "choose_by": "tre"}, "did you mean 'tre_mm'"),
        ({"style": {"dip": 300}}, "study.style: no key 'dip' .did you mean 'dpi'"),
        ({"parts": ["/nowhere"]}, "study.parts: /nowhere/table.json"),
    ],
)
def test_faults_of_choices(keys, message):
    with pytest.raises(ConfigError, match=message):
        Study({"d": None}, {"a1": [], "a2": []}, {}, **keys)


def test_what_was_not_measured_is_left_out_after_parts_are_put_together(tmp_path):
    made = rows({"a": [0, math.nan, 3]})
    tables.write_tables(made, tmp_path)
    read = read_parts([str(tmp_path)])
    assert [math.isnan(r["tre_mm"]) for r in read] == [False, True, False]
    assert "(n 2)" in tables.markdown(read)


def test_a_part_counts_once(tmp_path):
    tables.write_tables(rows({"a": [0, 1, 3]}), tmp_path)
    with pytest.raises(ConfigError, match="has case c0 of d by a, which another part has, too"):
        read_parts([str(tmp_path)] * 2)


def test_names_are_escaped():
    made = [{**r, "method": r["method"] + "^b|c~"} for r in rows({"a": [0, 1, 3]})]
    assert r"| a^b\|c~ |" in tables.markdown(made)
    assert r"a\textasciicircum{}b|c\textasciitilde{} &" in tables.latex(made)


def test_fronts_follow_the_settings_and_leave_out_what_was_not_measured(tmp_path):
    """Rows in another order, a measure that is 0 for the baseline, and NaN in one case."""
    made = [{**r, "hd95_mm": 0.0 if r["method"] == "b1" else 1.0} for r in rows({"a2": [5, 2, math.nan], "a1": [1, 4, 3], "b1": [1, 1, 1]})]
    study = Study(
        {"d": None}, {"a1": [], "a2": [], "b1": []}, {}, families=FAMILIES, choose_by="tre_mm", front=["tre_mm", "hd95_mm"], baseline="b"
    )
    compared = fronts.compared_rows(made, study)
    assert {r["case"] for r in compared} == {"c0", "c1"} and all(math.isfinite(r["tre_mm"]) for r in compared)
    assert fronts._mean_front(made, ["a1", "a2"], study.front) == [(2.5, 1.0), (3.5, 1.0)]
    fronts.write_fronts(made, study, tmp_path)
    assert "| d | a | 2 |" in (tmp_path / "front.md").read_text()


def test_the_second_measure_of_a_front_may_be_an_overlap():
    """A method of no family is a point of its own."""
    numbers = {"a1": (0.1, 0.7), "a2": (0.3, 0.9), "b1": (0.2, 0.85)}
    made = [{"data": "d", "case": "c", "method": m, "status": "done", "sd_log_jacobian": x, "dice": y} for m, (x, y) in numbers.items()]
    methods = {m: [] for m in numbers}
    study = Study(
        {"d": None}, methods, {}, families={"a": ["a1", "a2"]}, choose_by="dice", front=["sd_log_jacobian", "dice"], baseline="b1"
    )
    found = {r["method"]: r for r in fronts.compared_rows(made, study)}
    assert found["a"]["sd_log_jacobian"] == found["b1"]["sd_log_jacobian"] == 0.2
    assert found["a"]["dice"] == pytest.approx(0.8) and found["b1"]["dice"] == 0.85


@pytest.mark.parametrize(
    ("front", "message"), [(["dice", "tre_mm"], "less is better"), (["tre_mm", "dise"], "did you mean 'dice'"), (["dice"], "two")]
)
def test_fronts_that_cannot_be_made_are_refused(front, message):
    with pytest.raises(ConfigError, match=message):
        Study({"d": None}, {"a1": [], "a2": [], "b1": []}, {}, families=FAMILIES, choose_by="dice", front=front)
