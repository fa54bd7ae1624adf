"""Sweeps of train.py and eval.py (--multirun): every value is checked before, each job's value reaches the sweeper."""

import sys

import pytest
from hydra._internal.callbacks import Callbacks

from rdmm.config.compose import compose
from rdmm.config.program import Ended, run_program
from rdmm.types import InputError


@pytest.fixture
def sweep(monkeypatch, tmp_path, capsys):
    """Runs a sweep whose jobs call ``job(config)``: the values that the sweeper got, the exit code, and what was printed."""
    monkeypatch.chdir(tmp_path)

    def start(job, *words, name="train"):
        values = []
        monkeypatch.setattr(Callbacks, "on_job_end", lambda self, config, job_return, **_: values.append(job_return._return_value))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "-m", *words, f"hydra.sweep.dir={tmp_path}/sweep"])
        code = 0
        try:
            run_program(name, lambda config, overrides, folder: job(config), check=compose)
        except SystemExit as ended:
            code = ended.code
        monkeypatch.undo()
        return values, code, capsys.readouterr()

    return start


def test_each_value_reaches_the_sweeper(sweep):
    values, code, _ = sweep(lambda config: Ended(0, 10.0 * config["seed"]), "seed=1,2", "data=shapes", "dynamics=lddmm")
    assert values == [10.0, 20.0] and code == 0


@pytest.mark.fault(151)
@pytest.mark.parametrize("words", [["seed=range(1,3)", "dynamics=svf,ldmm"], ["trainer.bach=interval(1,3)"]])
def test_mistakes_are_explained_before_the_first_job(sweep, words):
    values, code, printed = sweep(lambda config: pytest.fail("a job was started"), *words, "data=shapes")
    assert not values and code == 2 and "did you mean" in printed.err


@pytest.mark.fault(151)
def test_a_failed_job_does_not_stop_the_others(sweep):
    ran = []

    def job(config):
        ran.append(config["seed"])
        if config["seed"] == 1:
            raise InputError("no such image")
        return Ended()

    _, code, printed = sweep(job, "seed=1,2", name="eval")
    assert ran == [1, 2] and code == InputError.exit_code
    assert "Traceback" not in printed.err
