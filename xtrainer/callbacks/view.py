"""What may a callback read and call on a trainer?"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from xtrainer.checkpoint import CheckpointItems, Saved
from xtrainer.loggers import LoggerTool
from xtrainer.metrics import History
from xtrainer.state import Progress, TrainState
from xtrainer.types import (
    ApplyFn,
    BatchLike,
    CountFunction,
    HostMetrics,
    PRNGKey,
    PyTree,
    Schedule,
)


class Timeouts(Protocol):
    """What callbacks read of a trainer's config."""

    @property
    def save_timeout_s(self) -> float:
        """Seconds after which a save has failed."""
        ...


class Times(Protocol):
    """What callbacks read of the times of a run."""

    def now(self) -> tuple[str, float]:
        """Returns what the run is at, and since when by ``time.perf_counter``; from any thread."""
        ...


class CallbackTrainer(Protocol):
    """A trainer as a callback sees it."""

    state: TrainState
    progress: Progress
    history: History
    mesh: Mesh
    dataset: Any
    may_save_failed: bool
    """Whether a run that has failed can be saved: all processes have left it at one step."""

    @property
    def trainer_config(self) -> Timeouts:
        """What was asked of the trainer."""
        ...

    @property
    def ledger(self) -> Times:
        """What the time goes into."""
        ...

    @property
    def logger(self) -> LoggerTool:
        """Where metrics go."""
        ...

    @property
    def log_every_n_steps(self) -> int:
        """Steps of a row."""
        ...

    @property
    def log_path(self) -> Path | None:
        """The run folder."""
        ...

    @property
    def total_steps(self) -> int | None:
        """Steps of the run under way, where they are known."""
        ...

    @property
    def has_validation(self) -> bool:
        """Whether the run under way has a validation set."""
        ...

    @property
    def validation_sets(self) -> tuple[str | None, ...]:
        """The names of the sets of a validation; None: one without a name."""
        ...

    @property
    def validation_loaders(self) -> Mapping[str | None, Iterable[BatchLike]]:
        """The loaders of the validation sets, by the same names."""
        ...

    def notify(self, hook: str, *args: Any) -> None:
        """Calls a hook of the trainer and of every callback that is due."""
        ...

    def request_stop(self, *, detail: str = "") -> None:
        """Ends the run after this step, on all processes.

        Args:
            detail: Why; a sentence that follows that of ``StopReason.REQUESTED``.
        """
        ...

    @property
    def should_stop(self) -> bool:
        """Whether the run is about to end; what takes long may look, and cut it short."""
        ...

    @property
    def stop_reason(self) -> Any:
        """Why the run ends, a ``StopReason``; None while it goes on."""
        ...

    @property
    def group_schedules(self) -> Mapping[str, Schedule]:
        """The schedules of groups of parameters, by the name of the group."""
        ...

    def learning_rate(
        self, step: int, skipped: int | None = None, group: str | None = None
    ) -> float | None:
        """Returns the learning rate that the update of a step used; None: not known."""
        ...

    def update_learning_rate(self) -> None:
        """Lets the next step use the product of all callbacks' ``learning_rate_factor``."""
        ...

    @property
    def train_batch_size(self) -> int:
        """Rows of a full batch of the training pass under way, of all processes."""
        ...

    def check_batch_sizes(self, sizes: Sequence[int]) -> None:
        """Refuses batch sizes that training cannot meet, all at once; tells of the others."""
        ...

    def set_batch_size(self, rows: int, begun: Callable[[int], None]) -> None:
        """Makes training batches larger or smaller from the next pass on.

        Args:
            rows: Of a full batch, of all processes.
            begun: Called with ``rows`` when the first pass of that size begins.
        """
        ...

    def step_flops(self) -> float:
        """Returns the floating-point operations of a training step, of all devices together."""
        ...

    def gather_checkpoint(
        self, save_optimizer_state: bool, save_dataloader_state: bool, metrics: HostMetrics
    ) -> CheckpointItems:
        """Returns what a checkpoint of the present step holds."""
        ...

    def note_saved(self, saved: Saved) -> None:
        """Takes notice of a save that is over; called by another thread."""
        ...

    def evaluate_with(
        self, loss_function: Callable[..., Any], loader: Iterable[BatchLike], title: str
    ) -> HostMetrics:
        """Returns the metrics of a loss over one pass of a loader."""
        ...

    def count_with(
        self, function: CountFunction, size: int, loader: Iterable[BatchLike], title: str
    ) -> np.ndarray:
        """Returns the sums of what a function counts in each batch of one pass of a loader."""
        ...

    def predict_function(
        self, params: PyTree, apply_fn: ApplyFn, batch: BatchLike, rng: PRNGKey
    ) -> PyTree:
        """Returns what the model says of a batch."""
        ...
