"""What was the learning rate? Logged with the metrics of the step that used it."""

from dataclasses import dataclass
from typing import Any

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.types import HostMetrics


@dataclass(frozen=True, kw_only=True)
class LearningRateMonitorConfig(CallbackConfig):
    """Adds the learning rate to every logged row of training, and that of each group."""

    name: str = "learning_rate"
    """Name of the metric; that of a group has ``/GROUP`` behind it."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "LearningRateMonitor":
        """Returns the callback."""
        return LearningRateMonitor(self, trainer, data_module)


class LearningRateMonitor(Callback):
    """See :class:`LearningRateMonitorConfig`; silent where the schedule is not known."""

    config: LearningRateMonitorConfig

    def on_training_log(self, train_metrics: HostMetrics, step_idx: int) -> None:
        """Adds the rate that the update of this step used."""
        # A row is logged later than its step, when more steps may have been refused.
        skipped = int(train_metrics.get("skipped_steps", 0))
        rate = self.trainer.learning_rate(step_idx, skipped)
        if rate is not None:
            train_metrics[self.config.name] = rate
        for group in self.trainer.group_schedules:
            rate = self.trainer.learning_rate(step_idx, skipped, group)
            if rate is not None:
                train_metrics[f"{self.config.name}/{group}"] = rate
