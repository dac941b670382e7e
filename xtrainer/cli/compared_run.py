"""Are steps, taken again, what a checkpoint says they were? For ``xtrainer replay --compare``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from xtrainer.callbacks import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.checkpoint.commit import read_commit
from xtrainer.checkpoint.fingerprint import differing
from xtrainer.cli.replayed_run import Replayed
from xtrainer.types import HostMetrics


class Comparison(NamedTuple):
    """What became of a state that was computed again.

    Attributes:
        start: The step that the replay began at.
        differing: Paths of the arrays that are not, bit for bit, those of the checkpoint.
        count: Arrays that were compared.
    """

    start: int
    differing: list[str]
    count: int


@dataclass(frozen=True, kw_only=True)
class CompareConfig(CallbackConfig):
    """Compares the state after a step with the checkpoint of it."""

    step_folder: str = ""
    """The checkpoint, of which only the record is read."""
    step: int = 1
    """Its step."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "Compare":
        """Returns the callback."""
        return Compare(self, trainer, data_module)


class Compare(Callback):
    """See :class:`CompareConfig`.

    The record holds a fingerprint of what was on the devices when the step was saved. So an array
    that a device has computed wrongly differs, though the files are as they were written.
    """

    config: CompareConfig
    needs_settled_state = True

    def __init__(
        self, config: CompareConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.start = 0

    def next_step(self, step: int) -> int | None:
        """Returns the step that is compared."""
        return self.config.step if step < self.config.step else None

    def on_training_start(self) -> None:
        """Notes where the replay begins."""
        self.start = self.trainer.progress.step

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Compares the state and ends the run of the experiment."""
        saved = read_commit(Path(self.config.step_folder)).fingerprints
        with jax.transfer_guard("allow"):
            wrong = differing(saved, self.trainer.state)
        raise Replayed(Comparison(self.start, wrong, len(saved)))
