"""Which rows of metrics has a run logged, and which is it about to? They go on after a resume."""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from xtrainer.errors import CheckpointError
from xtrainer.json_text import row_from_json, row_to_json
from xtrainer.loggers.base import host_floats
from xtrainer.loop.always import always
from xtrainer.loop.setback import Spikes
from xtrainer.loop.view import LoopTrainer, OpenRows
from xtrainer.loop.windows import MetricWindows
from xtrainer.metrics import finish
from xtrainer.step import StepReport, TrainExecutor
from xtrainer.types import JSON, HostMetrics

Results = dict[str, HostMetrics]


class Validated(NamedTuple):
    """The newest validation.

    Attributes:
        step: Of the state.
        key: Its name among the results.
        metrics: What it found.
    """

    step: int
    key: str
    metrics: HostMetrics


class Pending(NamedTuple):
    """A validation that was broken off, or never begun.

    Attributes:
        key: Its name among the results.
        epoch: Of the state.
        ends: What is to end after it: ``"full"`` or ``"open"``, an epoch that is, or ``""``.
    """

    key: str
    epoch: int
    ends: str = ""


class Rows:
    """The rows of a run.

    Args:
        trainer: Its logger and hooks are told.
        executor: Makes windows of metrics.

    Attributes:
        windows: The metrics of steps.
        newest: The newest row of training.
        validated: The newest validation.
        pending: The validation that is under way, or was when the run was ended.
        results: What ``train_model`` returns.
        spiked: The first and last step of a row whose loss is a spike, and a sentence on it.
    """

    def __init__(self, trainer: LoopTrainer, executor: TrainExecutor) -> None:
        self.trainer = trainer
        self.windows = MetricWindows(executor.new_window, self.log_row, trainer.progress.step)
        self.newest: HostMetrics = {}
        self.validated: Validated | None = None
        self.pending: Pending | None = None
        self.results: Results = {}
        trainer.results_so_far = self.results
        threshold = trainer.spike_threshold
        self.spikes = None if threshold is None else Spikes(threshold)
        self.spiked: tuple[int, int, str] | None = None
        self._resume()

    def _resume(self) -> None:
        """Goes on with rows and windows where the checkpoint has them that was restored."""
        trainer = self.trainer
        saved, trainer.restored_rows = trainer.restored_rows, None
        if saved is not None and saved.run is not None:
            try:
                self._load(saved.run)
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
                raise CheckpointError(
                    f"The rows of metrics in the checkpoint cannot be read ({error!r}), expected "
                    "what a save writes. Use another step."
                ) from error
        trainer.row_keeper = self

    def _load(self, run: Mapping[str, Any]) -> None:
        self.windows.load_state_dict(run["windows"])
        self.newest = row_from_json(run["newest"])
        if run["validated"] is not None:
            step, key, metrics = run["validated"]
            self.validated = Validated(int(step), str(key), row_from_json(metrics))
            self.results[self.validated.key] = self.validated.metrics
        if pending := run.get("pending"):
            self.pending = Pending(str(pending[0]), int(pending[1]), str(pending[2]))
        if self.spikes is not None:
            self.spikes.losses.extend(map(float, run.get("losses", [])))
        trainer = self.trainer
        trainer.history.restore(run.get("history"), trainer.progress.step, keep=True)

    def open_rows(self) -> OpenRows:
        """See :class:`RowKeeper`."""
        run: dict[str, JSON] = {"windows": self.windows.state_dict(), "validated": None}
        run["newest"] = row_to_json(self.newest)
        run["pending"] = None if self.pending is None else list(self.pending)
        if self.spikes is not None:
            run["losses"] = list(self.spikes.losses)
        if self.validated is not None:
            step, key, metrics = self.validated
            run["validated"] = [step, key, row_to_json(metrics)]
        run["history"] = self.trainer.history.to_json()
        logger = self.trainer.logger
        logger.flush()
        return OpenRows(run, logger.state_dict())

    def close(self, newest: StepReport) -> None:
        """Logs all rows, also one of fewer steps: a run that goes on from here logs it anew."""
        self.trainer.row_keeper = self.open_rows()
        self.windows.close(newest, self.trainer.progress.epoch)

    def log_epoch(self, metrics: HostMetrics, mode: str, epoch: int) -> None:
        """Logs the row of an epoch or a validation."""
        trainer, step = self.trainer, self.trainer.progress.step
        with trainer.ledger.spent("logging"):
            self._log(metrics, step, mode, epoch)

    def log_row(self, metrics: HostMetrics, last: StepReport, epoch: int) -> None:
        """Logs the metrics of the steps up to the one that ``last`` reports."""
        trainer = self.trainer
        metrics = trainer.get_metric_postprocess_fn()(metrics)
        if last.updates < last.step:
            metrics["skipped_steps"] = float(last.step - last.updates)
        with free_transfers(trainer), trainer.ledger.spent("logging"):
            log = lambda: self._log(metrics, last.step, "train", epoch)  # noqa: E731
            with always(log):
                trainer.notify("on_training_log", metrics, last.step)
        self.newest = metrics
        trainer.black_box.note_row(last.step, metrics)
        trainer.journal.row()
        if self.spikes is not None and self.spiked is None:
            self._look_for_spike(self.spikes, last.step)

    def _log(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        self.trainer.logger.log_metrics(metrics, step, mode, epoch)
        self.trainer.history.add(mode, step, epoch, host_floats(metrics))

    def _look_for_spike(self, spikes: Spikes, last: int) -> None:
        loss = finish(self.windows.given_out, ("mean_nopostfix",)).get("loss")
        if loss is not None and spikes.is_one(loss):
            first = self.windows.begins
            text = (
                f"The loss of steps {first} to {last} was {loss:.4g}, more than "
                f"{spikes.threshold:g} times the median {spikes.median():.4g} of the rows before."
            )
            self.spiked = (first, last, text)


def free_transfers(trainer: LoopTrainer) -> Any:
    """Returns a context in which transfers are allowed.

    Callbacks and loggers are the user's; what they transfer at their own moments is no stall.
    """
    guarded = trainer.guards_transfers and not trainer.feeds_host_batches
    return jax.transfer_guard("allow") if guarded else contextlib.nullcontext()
