"""A run of an experiment that stops at one step to look into it, for ``xtrainer replay``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax

from xtrainer.callbacks import Callback, CallbackConfig, ModelCheckpointConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.config.encode import CLASS_KEY
from xtrainer.data import LoaderPosition
from xtrainer.parallel import copy_tree
from xtrainer.state import TrainState
from xtrainer.step import PlacedBatch, StepDiagnosis, diagnose_step
from xtrainer.trainer.box_files import describe_batch, read_batch, read_records
from xtrainer.trainer.view import TrainerView
from xtrainer.types import BatchLike, HostMetrics


class Outcome(NamedTuple):
    """What a replayed step was like.

    Attributes:
        start: The step that the replay began at.
        batch_from: ``record`` or ``loader``.
        refused: Whether the compiled step was refused again; None where it was not run.
        diagnosis: Of the step; None where it was taken.
        same_batch: Whether the loader gave the batch that was recorded; None: not known.
    """

    start: int
    batch_from: str
    refused: bool | None
    diagnosis: StepDiagnosis | None
    same_batch: bool | None = None


class Replayed(BaseException):
    """Ends the run of the experiment; no error, and nobody's to catch but the command's.

    Args:
        outcome: Of the replay: an :class:`Outcome`, or what another callback has found.
    """

    def __init__(self, outcome: Any) -> None:
        super().__init__("The step was replayed.")
        self.outcome = outcome


def replayed(config: Any, watching: CallbackConfig, checkpoint: Path | None, own: Path) -> Any:
    """Returns the config of an experiment that replays a step and writes to a folder of its own.

    Args:
        config: Of the experiment.
        watching: What ends the replay with :class:`Replayed`.
        checkpoint: Where the replay goes on; None: it begins anew.
        own: The folder of the replay.
    """
    with config.unlocked():
        if config.trainer.get("logger") is not None:
            config.trainer.logger.log_path = str(own)
            config.trainer.logger.run_name = None
            config.trainer.logger.log_tools = []
        config.trainer.enable_progress_bar = False
        saving = ModelCheckpointConfig.__name__
        callbacks = [dict(callback) for callback in config.trainer.get("callbacks") or ()]
        kept = [callback for callback in callbacks if callback.get(CLASS_KEY) != saving]
        config.trainer.callbacks = [*kept, watching.to_dict()]
        config.resume = "never" if checkpoint is None else str(checkpoint)
    return config


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(CallbackConfig):
    """Looks into one step of a run."""

    run_folder: str = ""
    """The run whose records are read."""
    step: int = 1
    """The step."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "Replay":
        """Returns the callback."""
        return Replay(self, trainer, data_module)


class Replay(Callback):
    """See :class:`ReplayConfig`; it takes the place of the trainer's black box."""

    config: ReplayConfig
    needs_settled_state = True

    def __init__(
        self, config: ReplayConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.replayed = cast(TrainerView, trainer)
        self.record = read_records(Path(config.run_folder)).get(config.step)
        self.start = 0
        self.before: TrainState | None = None

    def next_step(self, step: int) -> int | None:
        """Returns the step before the one that is looked into, then that one."""
        wanted = self.config.step
        return wanted - 1 if step < wanted - 1 else wanted if step < wanted else None

    def on_training_start(self) -> None:
        """Looks into the step at once where it is the next one."""
        self.replayed.black_box = self
        self.start = self.trainer.progress.step
        if self.start == self.config.step - 1:
            self._next_is_wanted()

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Looks into the step that follows; where it has been taken it was finite."""
        if step_idx == self.config.step - 1:
            self._next_is_wanted()
        else:
            raise Replayed(Outcome(self.start, "loader", False, None))

    def note_row(self, step: int, metrics: HostMetrics) -> None:
        """Rows are no concern of a replay."""

    def died(self, error: BaseException) -> None:
        """The command tells of errors."""

    def refused(self, step: int, batch: PlacedBatch, position: LoaderPosition) -> None:
        """Looks into the step, if it is the one, with the state before it."""
        if step == self.config.step and self.before is not None:
            same = None
            if self.record is not None and "batch" in self.record:
                same = describe_batch(batch.data) == self.record["batch"]["leaves"]
            self._look(self.before, batch.data, batch.row_mask, "loader", True, same)

    def _next_is_wanted(self) -> None:
        state = self.trainer.state
        kept = None
        if self.record is not None:
            like = self.replayed.exmp_batch
            kept = read_batch(Path(self.config.run_folder), self.record, like)
        if kept is not None:
            self._look(state, *kept, "record", None)
        self.before = copy_tree(state, jax.tree.map(lambda x: x.sharding, state))

    def _look(
        self,
        state: TrainState,
        batch: BatchLike,
        row_mask: Any,
        source: str,
        refused: bool | None,
        same: bool | None = None,
    ) -> None:
        trainer = self.replayed
        parts = (trainer.loss_function, trainer.model.apply, trainer.optimizer)
        with jax.transfer_guard("allow"):
            said = diagnose_step(*parts, trainer.step_settings(), state, batch, row_mask)
        raise Replayed(Outcome(self.start, source, refused, said, same))
