"""Where a training's numbers go: each logger, several at once, and after a resume no number twice."""

import csv
import sys
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train_folders import NET, train
from test_training import training

from rdmm import ConfigError
from rdmm.config.build import build
from rdmm.config.compose import compose
from train.log import Log
from train.loggers import CSV, Logger, Run, TensorBoard

SMALL = {"max_steps": 4, "validate_every": 2, "checkpoint_every": 2, "warmup": 1, "log_every": 1}


def events_of(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def rows_of(folder):
    with (folder / "log.csv").open() as file:
        return [(int(r["step"]), r["name"], r["value"]) for r in csv.DictReader(file)]


def logged(path, loggers, **more):
    run = training(path, **{**SMALL, **more})
    run.log = Log("net", run.trainer.max_steps, Run(path, "net"), loggers)
    return run


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


@pytest.mark.fault(50)
def test_a_resumed_run_logs_no_step_twice(tmp_path):
    """Fault 50: killed after step 3, where the state is that of step 2: step 3 is logged again, and counts once."""
    path = tmp_path / "cut"
    run = logged(path, [TensorBoard(), CSV()])
    step = run._step

    def killed(*arguments):
        out = step(*arguments)
        if arguments[-1].step == 3:
            raise Killed
        return out

    run._step = killed
    with pytest.raises(Killed):
        run.run()
    assert max(s for s, *_ in rows_of(path)) == 3
    logged(path, [TensorBoard(), CSV()], resume=True).run()
    logged(tmp_path / "whole", [CSV()]).run()
    rows = [row for row in rows_of(path) if not row[1].startswith(("time", "memory"))]
    assert rows == [row for row in rows_of(tmp_path / "whole") if not row[1].startswith(("time", "memory"))]
    events = events_of(path)
    for tag in events.Tags()["scalars"]:
        steps = [e.step for e in events.Scalars(tag)]
        assert steps == sorted(set(steps)) == ([2, 4] if tag.startswith("validation") else [1, 2, 3, 4]), tag
    assert {"time/step_s", "time/data_s", "memory/peak_GiB", "validation/score"} <= set(events.Tags()["scalars"])


def test_settings_are_kept_beside_the_numbers(tmp_path, caplog):
    """Several loggers at once; hyperparameters and the composed YAML in TensorBoard; the costs of a step on its line."""
    with caplog.at_level("INFO"):
        train(tmp_path / "run", "logger=[tensorboard,csv]", "trainer.max_steps=1", "trainer.log_every=1")
    folder = tmp_path / "run" / NET
    events = events_of(folder)
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "max_steps: 1" in text and "```yaml" in text
    shown = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"trainer.learning_rate" in shown and b"loss.folding" in shown
    assert (1, "train/learning_rate", "1e-05") in rows_of(folder)
    assert "s a step, of which" in caplog.text and "peak memory" in caplog.text


def record(calls, name):
    """A stand-in for an object of a library: it notes each call."""

    class Noted:
        def __getattr__(self, method):
            def call(*arguments, **options):
                calls.append((f"{name}.{method}", arguments, options))
                return SimpleNamespace(experiment_id="7", info=SimpleNamespace(run_id="r1"))

            return call

    return Noted()


def test_weights_and_biases(tmp_path, monkeypatch):
    calls, ids = [], iter("ab")
    fake = SimpleNamespace(
        util=SimpleNamespace(generate_id=lambda: next(ids)),
        init=lambda **options: (calls.append(("init", (), options)), record(calls, "run"))[1],
        Image=lambda figure: "image",
        Histogram=lambda values: "histogram",
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (logger,) = build(compose(["logger=wandb", "logger.wandb.mode=offline"], "train")["logger"]).values()
    for _ in range(2):  # as a run that was resumed
        use(logger, tmp_path)
    starts = [options for name, _, options in calls if name == "init"]
    assert [o["id"] for o in starts] == ["a", "a"] and starts[0]["config"] == {"seed": 1} and starts[0]["mode"] == "offline"
    assert ("run.log", ({"train/loss": 0.5},), {"step": 3}) in calls
    assert ("run.log", ({"train/pair": "image"},), {"step": 3}) in calls
    assert [name for name, *_ in calls].count("run.finish") == 2
    with pytest.raises(ConfigError, match=r"logger\.wandb\.mode must be online or offline"):
        build(compose(["logger=wandb", "logger.wandb.mode=of"], "train")["logger"])


def test_mlflow(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda uri: record(calls, "client")))
    (logger,) = build(compose(["logger=mlflow"], "train")["logger"]).values()
    for _ in range(2):
        use(logger, tmp_path)
    names = [name for name, *_ in calls]
    assert names.count("client.create_run") == 1 and names.count("client.set_terminated") == 2
    assert ("client.log_param", ("r1", "seed", 1), {}) in calls
    assert ("client.log_metric", ("r1", "train/loss", 0.5), {"step": 3}) in calls


def use(logger, folder):
    logger.start(Run(folder, "net", {"seed": 1}, "seed: 1\n"))
    logger.scalars({"train/loss": 0.5}, 3)
    logger.figure("train/pair", object(), 3)
    logger.histogram("momentum", torch.zeros(3), 3)
    logger.close()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_named_before_data_are_read(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"needs {name}: pip install 'rdmm\[{name}\]'"):
        train(tmp_path / "run", f"logger={name}", "data=folder", "data.source.root=/nowhere")


def test_several_loggers_are_a_list():
    with pytest.raises(ConfigError, match=r"write logger=\[tensorboard,csv\]"):
        compose(["logger=tensorboard,csv"], "train")
    with pytest.raises(ConfigError, match=r"tensorbord.*did you mean.*tensorboard"):
        compose(["logger=[tensorbord,csv]"], "train")
    assert list(compose(["logger=csv"], "train")["logger"]) == ["csv"]


def test_an_own_logger_needs_two_methods(tmp_path):
    class Own(Logger):
        def __init__(self):
            self.seen = []

        def start(self, run):
            self.seen.append((run.name, run.step))

        def scalars(self, values, step):
            self.seen.append((sorted(values)[0], step))

    own = Own()
    logged(tmp_path, [own], max_steps=1, validate_every=1, picture_every=1).run()
    assert own.seen[0] == ("net", 0) and {step for _, step in own.seen[1:]} == {1}
