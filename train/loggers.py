"""Where the numbers of a training go: TensorBoard, a CSV file, Weights & Biases, MLflow, or a class of your own."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rdmm.io.files import write_atomically
from rdmm.types import ConfigError, Tensor


@dataclass(frozen=True)
class Run:
    """The training of one network, as its loggers see it.

    Args:
        folder: of the network's files.
        name: of the network.
        settings: what decides the weights, as dotted keys.
        text: the whole configuration, as YAML.
        step: steps taken so far: 0, or where a resumed run goes on. What was logged of later steps is to be replaced.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    step: int = 0


class Logger(Protocol):
    """Gets the numbers of a training. A class that derives from this one needs ``start`` and ``scalars`` only.

    Its constructor takes the entries of its node in ``logger``, and checks what can be checked before any data are read.
    """

    def start(self, run: Run) -> None:
        """Called once, before all others."""
        ...

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, such as ``train/loss``, after ``step`` steps."""
        ...

    def figure(self, name: str, figure: Any, step: int) -> None:
        """A figure of matplotlib."""
        return

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """The distribution of the values of a tensor."""
        return

    def close(self) -> None:
        """Called once, after all others, also after an error."""
        return


def _module(name: str, extra: str) -> Any:
    """An optional library. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"this logger needs {name.partition('.')[0]}: pip install 'rdmm[{extra}]' (in a checkout, '.[{extra}]')"
        raise ConfigError(f"{text}, or choose another one, e.g. logger=csv; {error}") from error


def _kept(file: Path, make: Callable[[], str]) -> str:
    """The identifier that a server knows a run by: made once and kept in the run's folder, so that a resumed run goes on there."""
    if not file.exists():
        write_atomically(file, make().encode())
    return file.read_text()


class TensorBoard(Logger):
    """Files for ``tensorboard --logdir``: numbers, pictures and distributions, hyperparameters, and the settings as text."""

    def __init__(self) -> None:
        self._library = _module("torch.utils.tensorboard", "networks")

    def start(self, run: Run) -> None:
        self._writer = self._library.SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)
        self._writer.add_text("settings", f"```yaml\n{run.text}\n```", run.step)
        values = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in run.settings.items()}
        experiment, begin, self._end = self._library.summary.hparams(values, {"validation/score": 0.0})
        for summary in (experiment, begin):
            self._writer.file_writer.add_summary(summary)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def figure(self, name: str, figure: Any, step: int) -> None:
        self._writer.add_figure(name, figure, step)

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        self._writer.add_histogram(name, values, step)

    def close(self) -> None:
        self._writer.file_writer.add_summary(self._end)
        self._writer.close()


class CSV(Logger):
    """``log.csv``: one row (step, name, value) for each number."""

    HEADER = ("step", "name", "value")

    def start(self, run: Run) -> None:
        self._path = run.folder / "log.csv"
        text = self._path.read_text() if self._path.exists() else ""
        earlier = [row for row in csv.reader(text.splitlines()) if len(row) == 3 and row[0].isdecimal() and int(row[0]) <= run.step]
        write_atomically(self._path, _as_csv([self.HEADER, *earlier]).encode())

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with self._path.open("a") as file:
            file.write(_as_csv([(step, name, float(value)) for name, value in values.items()]))


def _as_csv(rows: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


class WandB(Logger):
    """Weights & Biases.

    Args:
        project: its name there.
        mode: ``online``; ``offline`` keeps the files in the run's folder, for ``wandb sync``.
    """

    def __init__(self, project: str = "rdmm", mode: str = "online") -> None:
        if mode not in ("online", "offline"):
            raise ConfigError(f"logger.wandb.mode must be online or offline, not {mode!r}")
        self._library, self.project, self.mode = _module("wandb", "wandb"), project, mode

    def start(self, run: Run) -> None:
        number = _kept(run.folder / "wandb.txt", self._library.util.generate_id)
        options = {"project": self.project, "mode": self.mode, "name": run.name, "dir": str(run.folder), "config": dict(run.settings)}
        self._run = self._library.init(id=number, resume="allow", **options)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def figure(self, name: str, figure: Any, step: int) -> None:
        self._run.log({name: self._library.Image(figure)}, step=step)

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        self._run.log({name: self._library.Histogram(values.float().cpu().numpy())}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow(Logger):
    """MLflow.

    Args:
        experiment: its name there.
        uri: of the tracking server, or a folder; None: what MLFLOW_TRACKING_URI says, or ./mlruns.
    """

    def __init__(self, experiment: str = "rdmm", uri: str | None = None) -> None:
        self._library, self.experiment, self.uri = _module("mlflow", "mlflow"), experiment, uri

    def start(self, run: Run) -> None:
        self._client = self._library.MlflowClient(self.uri)
        self._run = _kept(run.folder / "mlflow.txt", lambda: self._create(run))
        self._client.update_run(self._run, status="RUNNING")

    def _create(self, run: Run) -> str:
        """A new run, with its settings; its identifier."""
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self.experiment)
        number = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
        for name, value in run.settings.items():
            self._client.log_param(number, name, value)
        self._client.log_text(number, run.text, "settings.yaml")
        return number

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, float(value), step=step)

    def figure(self, name: str, figure: Any, step: int) -> None:
        self._client.log_figure(self._run, figure, f"{name}_{step:07d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._run)
