"""How do all sets compare at this moment? One table of their metrics after each evaluation."""

import io
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.errors import MetricError, did_you_mean
from xtrainer.loggers import NullLogger
from xtrainer.metrics import DirectionMode, direction_of, mode_problems, warn_of_unknown_direction
from xtrainer.types import JSON, HostMetrics

_LOG = logging.getLogger(__name__)
_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class MetricsTableConfig(CallbackConfig):
    """Says the metrics of training and of all validation sets in one table, at each validation.

    It goes to the console and to every logging tool, as the text ``metrics``; so does one of each
    test.
    """

    main_process_only: bool = True
    """Whether other processes go without this callback."""
    metrics: tuple[str, ...] = ()
    """Names of the metrics that get a line, without the set's; (): all of the evaluation."""
    monitor: str | None = None
    """A validation metric (``loss``, of a named set ``SET_loss``) whose best value is told below
    the table, and marked with a star where it is that of this step; None: none is."""
    mode: DirectionMode = "auto"
    """Whether the best value is the smallest or the largest; ``auto``: as its name says, see
    :func:`xtrainer.metrics.better_when`."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "MetricsTable":
        """Returns the callback."""
        return MetricsTable(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns settings that cannot be."""
        return super().problems() + mode_problems(self.mode)


def by_set(
    metrics: HostMetrics, names: Sequence[str | None], default: str
) -> dict[str, HostMetrics]:
    """Returns the metrics of an evaluation by their set, under their own names.

    Args:
        metrics: Those of a named set are called ``SET_METRIC``.
        names: The sets; None: one without a name.
        default: What the set without a name is called.

    Example:
        >>> by_set({"loss": 1.0, "far_loss": 2.0}, [None, "far"], "val")
        {'val': {'loss': 1.0}, 'far': {'loss': 2.0}}
    """
    named = sorted((name for name in names if name is not None), key=len, reverse=True)
    found: dict[str, HostMetrics] = {default if name is None else name: {} for name in names}
    for key, value in metrics.items():
        owner = next((name for name in named if key.startswith(f"{name}_")), None)
        if owner is None:
            found.setdefault(default, {})[key] = value
        else:
            found[owner][key.removeprefix(f"{owner}_")] = value
    return {name: values for name, values in found.items() if values}


def render(
    columns: Mapping[str, HostMetrics],
    metrics: Sequence[str],
    marked: tuple[str, str] | None = None,
) -> str:
    """Returns a table with a line per metric and a column per set, 120 characters wide at most.

    Args:
        columns: The metrics of each set.
        metrics: What gets a line.
        marked: The set and the metric that get a star.

    Example:
        >>> print(render({"train": {"loss": 0.5}, "val": {"loss": 0.75}}, ["loss"]))
         metric   train    val
        ───────────────────────
         loss       0.5   0.75
    """
    from rich import box  # not with the package: it imports much
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("metric", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for metric in metrics:
        values = [
            f"{found[metric]:.4g}{' *' if (name, metric) == marked else ''}"
            if metric in found else "–"
            for name, found in columns.items()
        ]  # fmt: skip
        table.add_row(metric, *values)
    stream = io.StringIO()
    plain: dict[str, Any] = {"color_system": None, "markup": False, "force_jupyter": False}
    Console(file=stream, width=_WIDTH, **plain).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


class MetricsTable(Callback):
    """See :class:`MetricsTableConfig`."""

    config: MetricsTableConfig

    def __init__(
        self, config: MetricsTableConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self._begun = 0.0
        self._best: tuple[float, int] | None = None
        if config.monitor is not None:
            warn_of_unknown_direction(type(self).__name__, config.mode, config.monitor)

    def on_validation_epoch_start(self, epoch_idx: int, step_idx: int) -> None:
        """Takes the time."""
        self._begun = time.perf_counter()

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Tells of a validation, beside the newest metrics of training."""
        names = self.trainer.validation_sets
        sets = by_set(eval_metrics, names, "val")
        columns = sets if "train" in sets else {"train": self._training(step_idx, sets), **sets}
        marked = None
        if self._is_best(eval_metrics, step_idx):
            ((owner, own),) = by_set({self._monitored: 0.0}, names, "val").items()
            marked = (owner, next(iter(own)))
        self._tell(columns, sets, epoch_idx, step_idx, marked)

    def on_test_epoch_start(self, epoch_idx: int) -> None:
        """Takes the time."""
        self._begun = time.perf_counter()

    def on_test_epoch_end(self, test_metrics: HostMetrics, epoch_idx: int) -> None:
        """Tells of a test."""
        sets = {"test": test_metrics}
        self._tell(sets, sets, epoch_idx, self.trainer.progress.step, None)

    def _training(self, step: int, sets: Mapping[str, HostMetrics]) -> HostMetrics:
        """Returns the metrics of the epoch that ends here, or of the newest row, by bare names."""
        history = self.trainer.history
        row = history.newest("train_epoch")
        if row is None or row.step != step:
            row = history.newest("train") or row
        if row is None:
            return {}
        known = {key for found in sets.values() for key in found}
        bare = {
            key.removesuffix("_mean"): value
            for key, value in row.metrics.items()
            if key.removesuffix("_mean") in known
        }
        return {**bare, **row.metrics}

    @property
    def _monitored(self) -> str:
        return (self.config.monitor or "").removeprefix("val/")

    def _is_best(self, metrics: HostMetrics, step: int) -> bool:
        """Says whether the monitored metric is better than ever before; NaN never is."""
        if self.config.monitor is None:
            return False
        if self._monitored not in metrics:
            raise MetricError(
                f"MetricsTable monitors {self.config.monitor!r}, which is not among the metrics of "
                f"step {step}. {did_you_mean(self._monitored, metrics)}"
            )
        value = metrics[self._monitored]
        if not math.isfinite(value):
            return False
        sign = 1 if direction_of(self.config.mode, self._monitored) == "min" else -1
        if self._best is not None and sign * value >= sign * self._best[0]:
            return False
        self._best = (float(value), step)
        return True

    def _tell(
        self,
        columns: Mapping[str, HostMetrics],
        sets: Mapping[str, HostMetrics],
        epoch: int,
        step: int,
        marked: tuple[str, str] | None,
    ) -> None:
        seconds = time.perf_counter() - self._begun
        every = dict.fromkeys(key for found in sets.values() for key in found)
        wanted = self.config.metrics or tuple(every)
        lines = [
            f"epoch {epoch}, step {step}, evaluated in {seconds:.2f} s",
            render(columns, wanted, marked),
        ]
        if self._best is not None:
            value, at = self._best
            lines.append(f"best {self.config.monitor}: {value:.6g} at step {at}")
        text = "\n".join(lines)
        if isinstance(self.trainer.logger, NullLogger):
            _LOG.info("metrics at step %d:\n%s", step, text)
        else:
            self.trainer.logger.log_text("metrics", text, step)  # the console is one of its tools

    def state_dict(self) -> dict[str, JSON]:
        """Returns the best value and its step."""
        return {} if self._best is None else {"best": self._best[0], "step": self._best[1]}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Takes back what was the best value."""
        best = state.get("best")
        self._best = (float(best), int(state["step"])) if state else None  # type: ignore[arg-type]
