"""Is a metric still getting better? What is known of it, and what is shared by who watches it."""

import abc
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.errors import ConfigError, MetricError, did_you_mean
from xtrainer.metrics import (
    Direction,
    DirectionMode,
    direction_of,
    mode_problems,
    warn_of_unknown_direction,
)
from xtrainer.types import JSON, HostMetrics


@dataclass(frozen=True, kw_only=True)
class MonitoringConfig(CallbackConfig):
    """What a callback that watches a metric is told; the base of their configs."""

    monitor: str = "loss"
    """A validation metric (``loss``, of a named set ``SET_loss``), or a training epoch's
    (``train/loss``). Without a validation set, that of training epochs."""
    mode: DirectionMode = "auto"
    """Whether the best value is the smallest or the largest; ``"auto"``: as the metric's name says
    (largest for ``accuracy``), or the smallest."""
    min_delta: float = 0.0
    """By how much more than this a value must be better than the best to be an improvement."""

    @property
    def direction(self) -> Direction:
        """Whether the best value is the smallest or the largest."""
        return direction_of(self.mode, self.monitor)

    def problems(self) -> list[str]:
        """Returns settings that cannot be."""
        found = super().problems() + mode_problems(self.mode)
        if not (self.min_delta >= 0 and math.isfinite(self.min_delta)):
            found.append(f"min_delta: found {self.min_delta}, expected a number >= 0.")
        return found


class Standing(NamedTuple):
    """What is known of a monitored metric.

    Attributes:
        best: The best value, None where there was no finite one.
        best_step: Its step; where there is none, that at which training began.
        waited: Evaluations since then.
        value: The newest value, None where there is none.
        step: Its step.
    """

    best: float | None = None
    best_step: int = 0
    waited: int = 0
    value: float | None = None
    step: int = 0

    def to_json(self) -> dict[str, JSON]:
        """Returns the numbers as JSON, which has no NaN and no infinities: those as text."""
        value = self.value
        text = value if value is None or math.isfinite(value) else repr(value)
        return {**self._asdict(), "value": text}

    @classmethod
    def from_json(cls, data: Any) -> "Standing":
        """Returns what :meth:`to_json` gave."""
        best, value = (None if data[k] is None else float(data[k]) for k in ("best", "value"))
        return cls(best, int(data["best_step"]), int(data["waited"]), value, int(data["step"]))


def judge(config: MonitoringConfig, before: Standing, value: float, step: int) -> Standing:
    """Returns how a metric stands after one more value.

    Example:
        >>> config, standing = MonitoringConfig(), Standing()
        >>> for step, value in enumerate([1.0, 0.5, float("nan"), 0.6], start=1):
        ...     standing = judge(config, standing, value, step)
        >>> standing.best, standing.best_step, standing.waited
        (0.5, 2, 2)
    """
    if math.isfinite(value) and (before.best is None or _gain(config, value, before.best) > 0):
        return Standing(value, step, 0, value, step)
    return before._replace(waited=before.waited + 1, value=value, step=step)


def _gain(config: MonitoringConfig, value: float, best: float) -> float:
    """Returns by how much more than ``min_delta`` a value is better than the best."""
    return (best - value if config.direction == "min" else value - best) - config.min_delta


class Monitoring(Callback, abc.ABC):
    """Base of the callbacks that watch a metric and act on how it stands.

    All processes see the same values, and so act at the same step. How the metric stands is part of
    every checkpoint: a run that goes on from one acts where it would have acted anyway.
    """

    config: MonitoringConfig

    def __init__(
        self, config: MonitoringConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.standing: Standing | None = None
        warn_of_unknown_direction(type(self).__name__, config.mode, config.monitor)

    @property
    def monitors_training(self) -> bool:
        """Whether the metric is one of training epochs."""
        monitor = self.config.monitor
        return monitor.startswith("train/") or not self.trainer.has_validation

    def on_training_start(self) -> None:
        """Takes the step at which training begins.

        Raises:
            ConfigError: If a validation is monitored and there is none.
        """
        if self.config.monitor.startswith("val/") and not self.trainer.has_validation:
            raise ConfigError(
                f"{type(self).__name__} monitors {self.config.monitor!r}, but there is no "
                "validation. Pass a val_loader to train_model, or monitor a training metric "
                "('train/loss')."
            )
        if self.standing is None:
            self.standing = Standing(best_step=self.trainer.progress.step)

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Judges a validation."""
        if not self.monitors_training:
            self._judge(eval_metrics, step_idx)

    def on_training_epoch_end(self, train_metrics: HostMetrics, epoch_idx: int) -> None:
        """Judges an epoch; not one that the end of the run has cut short, nor one of no steps."""
        progress = self.trainer.progress
        measured = train_metrics.keys() - {"epoch_time_s"}
        if self.monitors_training and measured and progress.step_in_epoch == 0:
            self._judge(train_metrics, progress.step)

    def _judge(self, metrics: HostMetrics, step: int) -> None:
        name = self.config.monitor.removeprefix("train/").removeprefix("val/")
        if name not in metrics:
            raise MetricError(
                f"{type(self).__name__} monitors {self.config.monitor!r}, which is not among the "
                f"metrics of step {step}. {did_you_mean(name, metrics)}"
            )
        self.standing = judge(self.config, self.standing or Standing(), float(metrics[name]), step)
        self._judged(self.standing)

    @abc.abstractmethod
    def _judged(self, standing: Standing) -> None:
        """Acts on how the metric stands after one more value; may replace ``standing``."""

    def state_dict(self) -> dict[str, JSON]:
        """Returns how the metric stands."""
        return {} if self.standing is None else self.standing.to_json()

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Takes back how the metric stood."""
        self.standing = Standing.from_json(state) if state else None
