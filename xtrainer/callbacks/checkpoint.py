"""When is the state saved? After validations, every so many steps, and at the end."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.checkpoint import (
    CheckpointManager,
    describe_leaves,
    differing_replicas,
    note_failed_start,
)
from xtrainer.errors import (
    CheckpointError,
    CheckpointWriteError,
    MetricError,
    NewerAttemptError,
    did_you_mean,
)
from xtrainer.launch import broadcast, is_main_process, process_count
from xtrainer.metrics import Direction, DirectionMode, direction_of, warn_of_unknown_direction
from xtrainer.types import JSON, HostMetrics

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelCheckpointConfig(CallbackConfig):
    """Saves after each due validation; without a validation set, after each due epoch."""

    monitor: str | None = None
    """Metric that tells which checkpoint is best: a validation metric (``loss``), or a training
    epoch's (``train/loss``). None: only the newest ones are kept."""
    mode: DirectionMode = "auto"
    """Whether the best value is the smallest or the largest; ``"auto"``: as the metric's name says
    (largest for ``accuracy``), or the smallest."""
    max_to_keep: int | None = 1
    """How many of the best are kept; the newest two are kept besides. None: all."""
    every_n_steps: int = -1
    """Besides, save every so many steps; -1: not by steps."""
    every_n_minutes: float = -1.0
    """Besides, save with the first row of metrics after so many minutes without a save; -1: not by
    time. With several processes the main one's clock counts, and each row waits for its steps."""
    save_last: bool = True
    """Save when training ends, also when no validation is due there."""
    save_optimizer_state: bool = True
    """Without it a checkpoint can be evaluated and fine-tuned, but not resumed."""
    save_dataloader_state: bool = True
    """Save the position of the loaders."""
    enable_async_checkpointing: bool = True
    """Write while training goes on."""
    save_on_start: bool = False
    """Save before the first step, where no checkpoint of it is there."""
    save_on_exception: bool = True
    """Save the last good step when an error ends the run, so that none is lost; with several
    processes only where all have heard of it and left the run at one step, since others may be
    gone. Not after a failed save, nor when a program is to end at once (KeyboardInterrupt,
    SystemExit)."""
    compare_replicas: bool = False
    """Before each save, compare what the devices of a process hold of the same part of each array.
    Where they differ a device has lost or computed something wrongly: that is an error, and not
    saved. It takes the time of some reads of the state."""
    restore_best: bool = False
    """Load the best checkpoint, its state of training too, when a run has ended and was tested; a
    later ``train_model`` goes on from there. Not where a signal has ended it, since that is to go
    on where it was."""
    max_failed_saves: int = 0
    """Saves in a row that may fail, on a full disk for example, before the run is ended. Each is
    told as an error, and older checkpoints stay."""
    log_path: str | None = None
    """Folder of the checkpoints; None: ``checkpoints`` in the run folder."""

    @property
    def direction(self) -> Direction:
        """Whether the best value is the smallest or the largest."""
        return direction_of(self.mode, self.monitor or "loss")

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "ModelCheckpoint":
        """Returns the callback."""
        return ModelCheckpoint(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns settings that cannot be."""
        found = super().problems()
        if self.max_to_keep is not None and self.max_to_keep < 1:
            found.append(f"max_to_keep: found {self.max_to_keep}, expected >= 1, or None for all.")
        if self.every_n_minutes <= 0 and self.every_n_minutes != -1:
            found.append(f"every_n_minutes: found {self.every_n_minutes}, expected > 0, or -1.")
        if self.restore_best and self.monitor is None:
            found.append("restore_best: found True with monitor=None, expected a metric's name.")
        if self.max_failed_saves < 0:
            found.append(f"max_failed_saves: found {self.max_failed_saves}, expected >= 0.")
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
        warn_of_unknown_direction("ModelCheckpoint", config.mode, config.monitor or "loss")
        self._manager: CheckpointManager | None = None
        self._saved_step: int | None = None
        self._wanted: HostMetrics | None = None
        self._failures = 0
        self._saved_at = time.monotonic()
        self._start: int | None = None

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
        """Opens the folder, and sets steps aside that are later than where training starts.

        Raises:
            CheckpointError: If the state cannot be saved at all.
        """
        describe_leaves(self.trainer.state)  # told now rather than at the first save
        manager, step = self._open(), self.trainer.progress.step
        manager.supersede_after(step)
        self._start = step
        self._find_best()
        self._saved_at = time.monotonic()
        self._saved_step = manager.latest_step()
        if self.config.save_on_start and self._saved_step != step:
            self._save(None, step)

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Says where the best checkpoint is now: the run may have been moved."""
        self._find_best()

    def _find_best(self) -> None:
        progress, name = self.trainer.progress, str(self.config.monitor)
        best = progress.best.get(name)
        if best is not None and (folder := self.folder / str(best.get("step"))).is_dir():
            progress.best_checkpoints[name] = str(folder)

    def save_start(self) -> None:
        """Saves where training starts, unless that is saved; returns when it is written."""
        if self._saved_step != self.trainer.progress.step:
            self._save(None, self.trainer.progress.step)
        self._open().wait()

    def finish_save(self) -> None:
        """Waits for the save under way, if there is one.

        Raises:
            CheckpointError: If it has failed.
        """
        self._open().wait()

    def on_rollback(self, step_idx: int) -> None:
        """Sets later steps aside: they belong to the course that was left."""
        self._open().supersede_after(step_idx)
        self._saved_step, self._wanted = step_idx, None

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Remembers the validation's metrics for the save that follows its row."""
        if not self.monitors_training:
            self._wanted = eval_metrics

    def on_training_epoch_end(self, train_metrics: HostMetrics, epoch_idx: int) -> None:
        """Remembers the epoch's metrics where no validation is monitored."""
        if self.monitors_training:
            # An epoch whose last step was taken by an earlier call has only its time.
            measured = train_metrics.keys() - {"epoch_time_s"}
            self._wanted = train_metrics if measured else {}

    def on_epoch_logged(self, mode: str, step_idx: int) -> None:
        """Saves what was due; the row is in the logs then, and so need not be logged again."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self._save(wanted or None, step_idx)

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Saves by steps and by time."""
        interval = self.step_interval()
        by_steps = interval is not None and step_idx % interval == 0
        if by_steps or broadcast(self._is_late(), "time of a checkpoint"):
            self._save(None, step_idx)

    def next_step(self, step: int) -> int | None:
        """Returns the next step at which a save is due, or may be."""
        found = super().next_step(step)
        if self.config.every_n_minutes > 0 and (process_count() > 1 or self._is_late()):
            row = step - step % self.trainer.log_every_n_steps + self.trainer.log_every_n_steps
            return row if found is None else min(found, row)
        return found

    def watches_steps(self) -> bool:
        """Says whether saves by steps or by time may come."""
        return super().watches_steps() or self.config.every_n_minutes > 0

    def _is_late(self) -> bool:
        minutes = self.config.every_n_minutes
        return 0 < 60 * minutes <= time.monotonic() - self._saved_at

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
        """Saves the last step, in any case where a signal has ended the run.

        Raises:
            CheckpointError: If a save has failed, this one or one before it.
        """
        reason = self.trainer.stop_reason
        cut_short = reason is not None and reason.is_cut_short
        if (self.config.save_last or cut_short) and self.trainer.progress.step > 0:
            self._save(None, self.trainer.progress.step)
        self._open().wait()

    def on_exception(self, error: BaseException) -> None:
        """Saves the last good step and waits until it is there.

        Where the run has not come further than the checkpoint it went on from, that is noted: a
        start after two of these goes on from the one before.
        """
        step = self.trainer.progress.step
        if step == self._start and step in self._open().all_steps() and is_main_process():
            note_failed_start(self.folder, step)
        can_be = isinstance(error, Exception) and not isinstance(error, CheckpointError)
        has_begun = self._start is not None and step > 0
        together = process_count() == 1 or self.trainer.may_save_failed
        wanted = self.config.save_on_exception and can_be and together
        if wanted and has_begun and step != self._saved_step:
            self._save(None, step)
            self._open().wait()

    def finalize(self, status: str) -> None:
        """Finishes the save under way and closes the folder."""
        manager, self._manager, self._start = self._manager, None, None
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
                monitor_mode=None if config.monitor is None else config.direction,
                async_save=config.enable_async_checkpointing,
                save_timeout_s=self.trainer.trainer_config.save_timeout_s,
                on_saved=self.trainer.note_saved,
            )
        return self._manager

    def _save(self, metrics: HostMetrics | None, step: int) -> None:
        value = None if metrics is None else metrics.get(self.monitored or "")
        is_best = metrics is not None and self._remember_best(value, step, metrics)
        config, is_saved = self.config, step == self._saved_step
        if not is_saved:
            self._start_save(step, metrics or {}, value)
        elif value is not None:  # saved by steps, before its metrics were known
            self._open().rank(step, value)
        if step == self._saved_step:  # else the save has failed, and may
            if not is_saved:
                self.trainer.notify("on_checkpoint", step)
            if is_best:
                self.trainer.notify("on_best_checkpoint", step)
        if metrics is not None and self.monitored is not None and value is None:
            raise MetricError(
                f"ModelCheckpoint monitors {config.monitor!r}, which is not among the metrics of "
                f"step {step} (saved without it). {did_you_mean(self.monitored, metrics)}"
            )

    def _start_save(self, step: int, metrics: HostMetrics, value: float | None) -> None:
        config, manager = self.config, self._open()
        if config.compare_replicas:
            self._compare_replicas(step)
        items = self.trainer.gather_checkpoint(
            config.save_optimizer_state, config.save_dataloader_state, metrics
        )
        try:
            if manager.wait():
                self._failures = 0
        except CheckpointWriteError as error:
            self._count_failure(error)
        try:
            manager.save(step, items, value)
        except CheckpointWriteError as error:
            self._count_failure(error)
        else:
            self._saved_step, self._saved_at = step, time.monotonic()
            if not self.config.enable_async_checkpointing:
                self._failures = 0
            manager.when_failed(self._stop_for_failure)

    def _compare_replicas(self, step: int) -> None:
        with jax.transfer_guard("allow"):
            problems = differing_replicas(self.trainer.state)
        if problems:
            raise CheckpointError(
                f"{self.folder}: at step {step} replicas of {len(problems)} arrays differ, "
                "expected the same values on each: a device has lost or computed something. The "
                "step is not saved. Check the devices; go on from an older step:\n  "
                + "\n  ".join(problems[:20])
            )

    def _count_failure(self, error: CheckpointWriteError) -> None:
        """Raises the error of a save, or reports it where some may fail."""
        self._failures += 1
        self._saved_step = self._open().latest_step()
        may_fail = self._failures <= self.config.max_failed_saves
        if not may_fail or isinstance(error, NewerAttemptError):
            raise error
        _LOG.error("%s", error)

    def _stop_for_failure(self) -> None:
        """Ends the run at the next step, which then reports why; called by another thread."""
        if self._failures >= self.config.max_failed_saves:
            self.trainer.request_stop()

    def _remember_best(self, value: float | None, step: int, metrics: HostMetrics) -> bool:
        """Notes a value that is better than all before; says whether it is."""
        if value is None or not math.isfinite(value):
            return False
        progress, name = self.trainer.progress, str(self.config.monitor)
        old = progress.best.get(name, {}).get("value")
        better = old is None or (value < old if self.config.direction == "min" else value > old)
        if not better:
            return False
        row, gathered = self.trainer.history.newest("train_epoch"), {}
        if row is not None and row.step == step and not self.monitors_training:
            gathered = {f"train/{key}": number for key, number in row.metrics.items()}
        progress.best[name] = {
            "value": value,
            "step": step,
            "epoch": progress.epoch,
            "metrics": {  # measured times would let no two runs be equal
                key: float(number)
                for key, number in {**metrics, **gathered}.items()
                if not key.endswith("time_s")
            },
        }
        progress.best_checkpoints[name] = str(self.folder / str(step))
        return True
