"""When is the state saved? After validations, every so many steps, and at the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.checkpoint import CheckpointManager
from xtrainer.errors import CheckpointError, MetricError, did_you_mean
from xtrainer.types import HostMetrics


@dataclass(frozen=True, kw_only=True)
class ModelCheckpointConfig(CallbackConfig):
    """Saves after each due validation; without a validation set, after each due epoch."""

    monitor: str | None = None
    """Metric that tells which checkpoint is best: a validation metric (``loss``), or a training
    epoch's (``train/loss``). None: only the newest ones are kept."""
    mode: Literal["min", "max"] = "min"
    """Whether the best value is the smallest or the largest."""
    max_to_keep: int | None = 1
    """How many of the best are kept; the newest is kept besides. None: all."""
    every_n_steps: int = -1
    """Besides, save every so many steps; -1: not by steps."""
    save_last: bool = True
    """Save when training ends, also when no validation is due there."""
    save_optimizer_state: bool = True
    """Without it a checkpoint can be evaluated and fine-tuned, but not resumed."""
    save_dataloader_state: bool = True
    """Save the position of the loaders."""
    enable_async_checkpointing: bool = True
    """Write while training goes on."""
    log_path: str | None = None
    """Folder of the checkpoints; None: ``checkpoints`` in the run folder."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "ModelCheckpoint":
        """Returns the callback."""
        return ModelCheckpoint(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns settings that cannot be."""
        found = super().problems()
        if self.max_to_keep is not None and self.max_to_keep < 1:
            found.append(f"max_to_keep: found {self.max_to_keep}, expected >= 1, or None for all.")
        return found


class ModelCheckpoint(Callback):
    """See :class:`ModelCheckpointConfig`.

    Raises:
        ConfigError: If there is no folder to save to.
    """

    config: ModelCheckpointConfig
    needs_settled_state = True

    def __init__(
        self, config: ModelCheckpointConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.folder = self.own_folder(config.log_path, "checkpoints")
        self._manager: CheckpointManager | None = None
        self._saved_step: int | None = None

    @property
    def monitored(self) -> str | None:
        """The metric's name without the set's prefix."""
        monitor = self.config.monitor
        return None if monitor is None else monitor.removeprefix("train/").removeprefix("val/")

    @property
    def monitors_training(self) -> bool:
        """Whether the metric is one of training epochs."""
        return (self.config.monitor or "").startswith("train/") or not self.trainer.has_validation

    def on_training_start(self) -> None:
        """Opens the folder.

        Raises:
            CheckpointError: If it holds later steps than the one training starts from.
        """
        manager, step = self._open(), self.trainer.progress.step
        later = [other for other in manager.all_steps() if other > step]
        if later:
            raise CheckpointError(
                f"{self.folder}: found checkpoints of the steps {later}, while training would "
                f"start from step {step}. Call load_model() to go on from the newest, or choose "
                "another folder with LoggerConfig(log_path=...)."
            )
        self._saved_step = manager.latest_step()

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Saves with the validation's metrics."""
        if not self.monitors_training:
            self._save(eval_metrics, step_idx)

    def on_training_epoch_end(self, train_metrics: HostMetrics, epoch_idx: int) -> None:
        """Saves with the epoch's metrics where no validation is monitored."""
        if self.monitors_training:
            # An epoch whose last step was taken by an earlier call has only its time.
            measured = train_metrics.keys() - {"epoch_time_s"}
            self._save(train_metrics if measured else None, self.trainer.progress.step)

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Saves by steps."""
        self._save(None, step_idx)

    def step_interval(self) -> int | None:
        """Returns every how many steps to save; None: not by steps."""
        return self.config.every_n_steps if self.config.every_n_steps > 0 else None

    @property
    def account(self) -> tuple[str, str]:
        """See the base class; checkpoints have an account of their own."""
        return "checkpoint", type(self).__name__

    def is_due(self, hook: str, args: Sequence[Any]) -> bool:
        """Says whether a hook is to be called now; all validations within an epoch are due."""
        within_epoch = self.trainer.progress.step_in_epoch > 0
        return (hook.startswith("on_validation") and within_epoch) or super().is_due(hook, args)

    def on_training_end(self) -> None:
        """Saves the last step."""
        if self.config.save_last and self.trainer.progress.step > 0:
            self._save(None, self.trainer.progress.step)

    def finalize(self, status: str) -> None:
        """Finishes the save under way and closes the folder."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def best_step(self) -> int | None:
        """Returns the step of the best checkpoint, None where no finite metric was seen."""
        manager = self._open()
        manager.wait()
        return manager.best_step() if self.config.monitor is not None else None

    def _open(self) -> CheckpointManager:
        if self._manager is None:
            config = self.config
            self._manager = CheckpointManager(
                self.folder,
                max_to_keep=config.max_to_keep,
                monitor_mode=None if config.monitor is None else config.mode,
                async_save=config.enable_async_checkpointing,
            )
        return self._manager

    def _save(self, metrics: HostMetrics | None, step: int) -> None:
        value = None if metrics is None else metrics.get(self.monitored or "")
        if value is not None:
            self._remember_best(value, step)
        config = self.config
        if step != self._saved_step:
            items = self.trainer.gather_checkpoint(
                config.save_optimizer_state, config.save_dataloader_state, metrics or {}
            )
            self._open().save(step, items, value)
            self._saved_step = step
        elif value is not None:  # saved by steps, before its metrics were known
            self._open().rank(step, value)
        if metrics is not None and self.monitored is not None and value is None:
            raise MetricError(
                f"ModelCheckpoint monitors {config.monitor!r}, which is not among the metrics of "
                f"step {step} (saved without it). {did_you_mean(self.monitored, metrics)}"
            )

    def _remember_best(self, value: float, step: int) -> None:
        progress, name = self.trainer.progress, str(self.config.monitor)
        old = progress.best.get(name, {}).get("value")
        better = old is None or (value < old if self.config.mode == "min" else value > old)
        if math.isfinite(value) and better:
            progress.best[name] = {"value": value, "step": step, "epoch": progress.epoch}
