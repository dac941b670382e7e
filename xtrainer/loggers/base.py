"""What is asked of a logger: the tool, its config, the one that does nothing and the composite."""

import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from xtrainer.config import Config
from xtrainer.errors import ConfigError, MetricError
from xtrainer.loggers.media import Cell, host_histogram, host_image, host_table
from xtrainer.types import JSON, HostMetrics

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class LoggerTool:
    """One place that is told about a run; override what you need, the rest does nothing.

    A tool begins closed. ``open`` comes before the first row; after ``finalize`` a tool may be
    opened again, and goes on where it stopped. Between the two it may fail: what it is given is
    then given again for a while, see ``LoggerConfig.on_tool_error``. So a call that raises should
    have written nothing.
    """

    is_remote: ClassVar[bool] = False
    """Whether a call may wait for a network: all but ``open`` then come from a thread."""

    @property
    def kind(self) -> str:
        """The name that a checkpoint keeps this tool under."""
        return type(self).__name__

    def open(self) -> None:
        """Opens files and connections; does nothing where they are open."""

    def log_config(self, config: Mapping[str, JSON]) -> None:
        """Keeps the configuration of the run."""

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Keeps one row of metrics.

        Args:
            metrics: Floats by name, without the set.
            step: Training steps done, from 1.
            mode: The set: ``"train"``, ``"train_epoch"``, ``"val"``, ``"test"``.
            epoch: Number of the epoch, from 1.
        """

    def log_text(self, key: str, text: str, step: int) -> None:
        """Keeps a text, such as the summary at the end."""

    def log_model(self, table: str) -> None:
        """Keeps the table of the model's parameters; comes after the config."""

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Keeps an image.

        Args:
            key: Its name; images of one name are a series over the steps.
            image: uint8 ``(height, width, channels)`` with 1, 3 or 4 channels. Whoever calls
                ``trainer.logger`` may also give ``(height, width)``, and floats from 0 to 1.
            step: Training steps done.
        """

    def log_histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """Keeps a histogram, as :func:`numpy.histogram` gives it.

        Args:
            key: Its name; histograms of one name are a series over the steps.
            counts: ``(bins,)``.
            edges: ``(bins + 1,)``, rising.
            step: Training steps done.
        """

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Keeps a small table of texts and numbers.

        Args:
            key: Its name; tables of one name are a series over the steps.
            columns: Their names.
            rows: A value for each column.
            step: Training steps done.
        """

    def log_best(self, metrics: HostMetrics, step: int) -> None:
        """Keeps the best value of each monitored metric, at the end of a run.

        Args:
            metrics: Floats by the name of the metric.
            step: Training steps done.
        """

    def flush(self) -> None:
        """Makes what was logged visible to other programs."""

    def state_dict(self) -> dict[str, JSON]:
        """Returns what a checkpoint keeps of this tool, such as the number of its rows; JSON.

        Where rows are kept for the tool since it has failed, their number is added as
        ``late_rows``: it may be given them after all, and they count as rows before the checkpoint.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Goes back to where a checkpoint was taken: rows that came later are retired.

        Args:
            state: What :meth:`state_dict` returned then.
            step: Of the checkpoint.
        """

    def finalize(self, status: str) -> None:
        """Closes everything; ``status`` is ``"completed"``, ``"stopped"`` or ``"failed"``."""


class NullLogger(LoggerTool):
    """The logger of a run without logs."""


@dataclass(frozen=True, kw_only=True)
class LoggerToolConfig(Config):
    """Base of the configs of logging tools."""

    def create(self, folder: Path | None) -> LoggerTool:
        """Returns the tool, not yet opened: nothing is written here.

        Args:
            folder: The run folder; None where the run writes nothing.

        Raises:
            ConfigError: If the tool cannot work as configured.
        """
        raise ConfigError(_no_tool(type(self)))

    def problems(self) -> list[str]:
        """Returns a sentence where the class makes no tool."""
        makes_none = type(self).create is LoggerToolConfig.create
        return [f"class_name: {_no_tool(type(self))}"] if makes_none else []


def _no_tool(config_class: type) -> str:
    return (
        f"found {config_class.__name__}, which has no create(); expected the config of a tool, "
        "for example FileLoggerConfig."
    )


class MultiLogger(LoggerTool):
    """Passes everything on to several tools, which it opens with the first row.

    An error of a tool is raised at once, except in ``finalize``: there every tool is closed first,
    the last one first, so that what they say of it is still shown and written down.

    Args:
        tools: Told in this order.
    """

    def __init__(self, tools: Sequence[LoggerTool]) -> None:
        self.tools = tuple(tools)
        self._is_open = False

    def open(self) -> None:
        """Opens all tools; if one fails, those before it are closed again."""
        if self._is_open:
            return
        self._is_open = True
        try:
            for tool in self.tools:
                tool.open()
        except BaseException:
            self.finalize("failed")
            raise

    def log_config(self, config: Mapping[str, JSON]) -> None:
        """Gives the config to every tool."""
        self.open()
        for tool in self.tools:
            tool.log_config(config)

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Gives a row to every tool.

        Raises:
            MetricError: If a value is no number; then no tool has been given the row.
        """
        row = host_floats(metrics)
        self.open()
        for tool in self.tools:
            tool.log_metrics(row, step, mode, epoch)

    def log_text(self, key: str, text: str, step: int) -> None:
        """Gives a text to every tool."""
        self.open()
        for tool in self.tools:
            tool.log_text(key, text, step)

    def log_model(self, table: str) -> None:
        """Gives the table of parameters to every tool."""
        self.open()
        for tool in self.tools:
            tool.log_model(table)

    def log_image(self, key: str, image: Any, step: int) -> None:
        """Gives an image to every tool.

        Raises:
            MetricError: If it is none; then no tool has been given it.
        """
        pixels = host_image(key, image)
        self.open()
        for tool in self.tools:
            tool.log_image(key, pixels, step)

    def log_histogram(self, key: str, counts: Any, edges: Any, step: int) -> None:
        """Gives a histogram to every tool.

        Raises:
            MetricError: If it is none; then no tool has been given it.
        """
        bins = host_histogram(key, counts, edges)
        self.open()
        for tool in self.tools:
            tool.log_histogram(key, *bins, step)

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Gives a table to every tool.

        Raises:
            MetricError: If it is none; then no tool has been given it.
        """
        table = host_table(key, columns, rows)
        self.open()
        for tool in self.tools:
            tool.log_table(key, *table, step)

    def log_best(self, metrics: HostMetrics, step: int) -> None:
        """Gives the best values to every tool."""
        row = host_floats(metrics)
        self.open()
        for tool in self.tools:
            tool.log_best(row, step)

    def flush(self) -> None:
        """Flushes every tool that is open."""
        for tool in self.tools if self._is_open else ():
            tool.flush()

    def state_dict(self) -> dict[str, JSON]:
        """Returns what every tool has to keep, by its class and number."""
        return {name: tool.state_dict() for name, tool in self._named()}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Takes every tool back, those of which nothing was kept as well."""
        for name, tool in self._named():
            tool.load_state_dict(state.get(name, {}), step)

    def _named(self) -> list[tuple[str, LoggerTool]]:
        names = [tool.kind for tool in self.tools]
        return [(f"{name}_{names[:i].count(name)}", self.tools[i]) for i, name in enumerate(names)]

    def finalize(self, status: str) -> None:
        """Closes every tool, also where one fails, and then raises the first error."""
        if not self._is_open:
            return
        self._is_open = False
        closing = [lambda tool=tool: tool.finalize(status) for tool in reversed(self.tools)]
        finish_all(closing)


def saved_run_id(state: Mapping[str, Any]) -> str | None:
    """Returns the id of a service's run that a checkpoint holds, which must be one plain word.

    Raises:
        ValueError: If it is something else: services make it part of paths and addresses.

    Example:
        >>> saved_run_id({"run_id": "3f9a"}), saved_run_id({})
        ('3f9a', None)
    """
    found = state.get("run_id")
    if found is not None and not (isinstance(found, str) and _RUN_ID.fullmatch(found)):
        raise ValueError(f"run_id: found {found!r:.80}, expected letters, digits, - and _")
    return found


def finish_all(actions: Sequence[Callable[[], None]]) -> None:
    """Runs every action; then raises the first error, which names the others in its notes."""
    errors: list[BaseException] = []
    for action in actions:
        try:
            action()
        except BaseException as error:
            errors.append(error)
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"Afterwards: {type(other).__name__}: {other}")
        raise errors[0]


def host_floats(metrics: Mapping[str, Any]) -> HostMetrics:
    """Returns a row with every value as a Python float.

    Raises:
        MetricError: Naming the first key whose value is not one real number.

    Example:
        >>> host_floats({"loss": 1})
        {'loss': 1.0}
    """
    row: HostMetrics = {}
    for key, value in metrics.items():
        if type(value) is float and type(key) is str:
            row[key] = value
            continue
        if not isinstance(key, str):
            raise MetricError(f"Found the metric name {key!r}, expected a text. Rename it.")
        if not isinstance(value, numbers.Real) and not _is_scalar_array(value):
            raise _metric_error(key, value)
        row[key] = float(value)
    return row


def _is_scalar_array(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if getattr(value, "shape", None) != () or dtype is None:
        return False
    # bfloat16 and its like have the kind "V" in NumPy, which float() can take none the less.
    return dtype.kind in "biuf" or (dtype.kind == "V" and hasattr(value, "__float__"))


def _metric_error(key: str, value: Any) -> MetricError:
    shape = getattr(value, "shape", None)
    found = f"an array of shape {tuple(shape)}" if shape else f"{value!r:.80}"
    return MetricError(
        f"The metric {key!r} is {found} ({type(value).__name__}), expected one number. "
        "Reduce it before logging, or leave it out."
    )
