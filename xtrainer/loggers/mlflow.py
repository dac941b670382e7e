"""What MLflow is told; the package is imported here and nowhere else."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xtrainer.errors import ConfigError, require
from xtrainer.loggers.base import LoggerTool, LoggerToolConfig, saved_run_id
from xtrainer.loggers.media import Cell, encode_png, file_name, table_csv
from xtrainer.loggers.settings import flat_settings
from xtrainer.types import JSON, HostMetrics

_STATUS = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_CONFIG_FILE = "config.json"
_MAX_NAME = 240
"""MLflow takes 250 characters; the rest is for telling names apart."""
_MAX_VALUE = 500
"""Characters of a parameter that every version of MLflow takes."""
_MAX_PARAMS = 100
"""Parameters in a call."""


@dataclass(frozen=True, kw_only=True)
class MLflowLoggerConfig(LoggerToolConfig):
    """A run at an MLflow tracking server; sends what is logged and the config, no code.

    Histograms are left out, as MLflow has none.
    """

    experiment: str = "xtrainer"
    """The experiment that the run belongs to; made if it is not there."""

    tracking_uri: str | None = None
    """Where to send; None: what MLflow is set to, as by the variable MLFLOW_TRACKING_URI."""

    name: str | None = None
    """The run's name; that of the run folder where None."""

    tags: dict[str, str] = field(default_factory=dict)
    """Words to find the run by."""

    def create(self, folder: Path | None) -> LoggerTool:
        """Returns the tool.

        Raises:
            ConfigError: If neither a name nor a run folder says what to call the run.
            MissingDependencyError: If no package ``mlflow`` is installed.
        """
        name = self.name or (folder.name if folder is not None else None)
        if name is None:
            raise ConfigError(
                "MLflowLoggerConfig names its run by the run folder: found log_path=None and "
                "name=None. Set one of them."
            )
        return MLflowLogger(self, name, require("mlflow.tracking", "mlflow"))


class MLflowLogger(LoggerTool):
    """Sends rows as metrics ``set/metric`` at their step.

    MLflow removes no metric that was sent. After a resume, values of later steps are therefore
    looked up, once for each metric, and those that are there already are not sent again: a run that
    goes on exactly has one value for each metric and step. Where a run goes on otherwise, the newer
    value stands beside the older one.

    Args:
        config: What to call the run and where to send it.
        name: Of the run.
        tracking: The imported package ``mlflow.tracking``.
    """

    is_remote = True

    def __init__(self, config: MLflowLoggerConfig, name: str, tracking: Any) -> None:
        self.config = config
        self.name = name
        self._tracking = tracking
        self._client: Any = None
        self._run_id: str | None = None
        self._after: int | None = None
        self._sent: dict[str, dict[int, float]] = {}
        self._names: dict[str, str] = {}  # those that MLflow is given, by metric

    def open(self) -> None:
        """Begins the run, or goes on with the one that was closed."""
        self._open()

    def log_config(self, config: Mapping[str, JSON]) -> None:
        """Sends the config as the file ``config.json``, and its values as parameters.

        Parameters cannot be changed: those of a run that goes on stay what they were at first.
        """
        client, run_id = self._open()
        client.log_dict(run_id, dict(config), _CONFIG_FILE)
        known = client.get_run(run_id).data.params
        make = require("mlflow.entities", "mlflow").Param
        settings = {_allowed(name): value for name, value in flat_settings(config).items()}
        new = [
            make(name, str(value)[:_MAX_VALUE])
            for name, value in settings.items()
            if name not in known
        ]
        for first in range(0, len(new), _MAX_PARAMS):
            client.log_batch(run_id, params=new[first : first + _MAX_PARAMS])

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Sends one row."""
        row = {self._name(f"{mode}/{key}"): value for key, value in metrics.items()}
        self._send({**row, f"{mode}/epoch": float(epoch)}, step)

    def _send(self, row: Mapping[str, float], step: int) -> None:
        client, run_id = self._open()
        now = int(time.time() * 1000)
        new = [
            self._metric(key, value, now, step)
            for key, value in row.items()
            if not self._is_there(key, value, step)
        ]
        if new:
            client.log_batch(run_id, metrics=new)

    def log_text(self, key: str, text: str, step: int) -> None:
        """Sends a text as the file ``text/KEY_STEP.txt``."""
        client, run_id = self._open()
        client.log_text(run_id, text, f"text/{file_name(key)}_{step}.txt")

    def log_model(self, table: str) -> None:
        """Sends the table of parameters as the file ``parameters.txt``."""
        client, run_id = self._open()
        client.log_text(run_id, table, "parameters.txt")

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Sends an image as the file ``images/KEY/STEP.png``; one that is there is replaced."""
        client, run_id = self._open()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{step:08d}.png"
            path.write_bytes(encode_png(image))
            client.log_artifact(run_id, str(path), f"images/{file_name(key)}")

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Sends a table as the file ``tables/KEY/STEP.csv``; one that is there is replaced."""
        client, run_id = self._open()
        path = f"tables/{file_name(key)}/{step:08d}.csv"
        client.log_text(run_id, table_csv(columns, rows), path)

    def log_best(self, metrics: HostMetrics, step: int) -> None:
        """Sends the best values as metrics ``best/METRIC``."""
        self._send({self._name(f"best/{key}"): value for key, value in metrics.items()}, step)

    def state_dict(self) -> dict[str, JSON]:
        """Returns the id of the run, which a later process goes on with."""
        return {} if self._run_id is None else {"run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Goes on with the run of a checkpoint."""
        self._run_id = saved_run_id(state) or self._run_id
        self._after, self._sent = step, {}

    def finalize(self, status: str) -> None:
        """Closes the run with the status of MLflow."""
        client, self._client = self._client, None
        if client is not None:
            client.set_terminated(self._run_id, _STATUS.get(status, "FAILED"))

    def _open(self) -> tuple[Any, str]:
        if self._client is None or self._run_id is None:
            client = self._tracking.MlflowClient(tracking_uri=self.config.tracking_uri)
            if self._run_id is None:
                experiment = client.get_experiment_by_name(self.config.experiment)
                experiment_id = (
                    client.create_experiment(self.config.experiment)
                    if experiment is None
                    else experiment.experiment_id
                )
                run = client.create_run(experiment_id, run_name=self.name, tags=self.config.tags)
                self._run_id = str(run.info.run_id)
            else:
                client.update_run(self._run_id, status="RUNNING")
            self._client = client
        return self._client, self._run_id

    def _name(self, metric: str) -> str:
        """Returns the name for a metric; where two would have one, the later gets a ``_``."""
        if metric not in self._names:
            name, taken = _allowed(metric), set(self._names.values())
            while name in taken:
                name += "_"
            self._names[metric] = name
        return self._names[metric]

    def _is_there(self, key: str, value: float, step: int) -> bool:
        """Says whether an earlier process has sent a value after the checkpoint."""
        if self._after is None or step < self._after:
            return False
        if key not in self._sent:
            history = self._client.get_metric_history(self._run_id, key)
            self._sent[key] = {m.step: m.value for m in history if m.step >= self._after}
        sent = self._sent[key].get(step)
        return sent is not None and (sent == value or (sent != sent and value != value))

    def _metric(self, key: str, value: float, time_ms: int, step: int) -> Any:
        entities = require("mlflow.entities", "mlflow")
        return entities.Metric(key, value, time_ms, step)


def _allowed(key: str) -> str:
    """Returns a name that MLflow takes: letters, digits and ``_-. :/``, as a path within a folder.

    Example:
        >>> _allowed("val/../größe")
        'val/__/gr__e'
    """
    name = "".join(c if c.isalnum() and c.isascii() or c in "_-. :/" else "_" for c in key)
    parts = [part if part.strip(".") else "_" * max(len(part), 1) for part in name.split("/")]
    return "/".join(parts)[:_MAX_NAME]
