"""What does the loop need of a trainer? Everything it reads, calls and sets."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from xtrainer.data import LoaderPosition, LoaderSource
from xtrainer.launch.interrupts import Interrupts
from xtrainer.loggers import LoggerTool
from xtrainer.loop.agenda import Agenda, NextStep
from xtrainer.loop.ledger import Ledger
from xtrainer.loop.plan import Plan
from xtrainer.loop.setback import Setback
from xtrainer.loop.stop import StopReason
from xtrainer.metrics import DeviceMetrics, History
from xtrainer.state import Progress, TrainState
from xtrainer.step import PlacedBatch, TrainExecutor
from xtrainer.types import JSON, BatchLike, HostMetrics, MetricPostprocess


class StepHook(NamedTuple):
    """An ``on_training_step`` that does something.

    Attributes:
        next_step: From a step to the next one after it at which it is called; None: never again.
        call: Called with (newest row, epoch, step).
        settled: Whether the step must be known to be finite first.
        account: What its time is counted for, see :meth:`Ledger.spent`.
    """

    next_step: NextStep
    call: Callable[[HostMetrics, int, int], None]
    settled: bool
    account: tuple[str, str] = ("callbacks", "on_training_step")


class OpenRows(NamedTuple):
    """What a checkpoint keeps of rows of metrics; after a run it is what was there at its end.

    Attributes:
        run: What the loop knows of them: metrics of steps without a row, the newest row, the
            newest validation, the rows of validations and epochs.
        loggers: How far the loggers have come; None: not theirs.
    """

    run: JSON = None
    loggers: JSON = None

    def open_rows(self) -> "OpenRows":
        """Returns itself, as a run that has ended would say it."""
        return self


class RowKeeper(Protocol):
    """Who knows which rows there are."""

    def open_rows(self) -> OpenRows:
        """Returns what a checkpoint keeps of rows; those that are due are logged first."""
        ...


class Watcher(Protocol):
    """Who keeps what is to be known of steps that went wrong."""

    def note_row(self, step: int, metrics: HostMetrics) -> None:
        """Remembers a row of metrics."""
        ...

    def refused(self, step: int, batch: PlacedBatch, position: LoaderPosition) -> None:
        """Notes a refused step, with the loader's position before its batch."""
        ...

    def died(self, error: BaseException) -> None:
        """Notes what has ended the run."""
        ...


class Diary(Protocol):
    """Who keeps what has happened to the run, and when; a call costs next to nothing."""

    def first_step(self) -> None:
        """Notes that the first step is done."""
        ...

    def row(self) -> None:
        """Notes that a row of metrics was logged."""
        ...

    def validation(self) -> None:
        """Notes that a validation was done, and its row logged."""
        ...

    def refused(self, step: int) -> None:
        """Notes a step that the guard has refused."""
        ...


class Preparer(Protocol):
    """What puts batches on the devices, all in one shape."""

    def __call__(self, batch: BatchLike) -> PlacedBatch:
        """Returns a host batch on the devices."""
        ...

    def begin(self, full_rows: int, like: Any = None) -> None:
        """Forgets what batches were seen and takes the rows of a full one."""
        ...

    def empty(self) -> PlacedBatch:
        """Returns a batch of padding."""
        ...


class LoopTrainer(Protocol):
    """A trainer as the loop sees it."""

    state: TrainState
    carried: Any
    progress: Progress
    stop_reason: StopReason | None
    stop_wanted: tuple[StopReason, str] | None
    may_save_failed: bool
    setback: Setback | None
    first_step: bool
    ledger: Ledger
    history: History
    row_keeper: RowKeeper
    interrupts: Interrupts
    black_box: Watcher
    restored_rows: OpenRows | None
    results_so_far: dict[str, HostMetrics]

    @property
    def logger(self) -> LoggerTool:
        """Where metrics go."""
        ...

    @property
    def journal(self) -> Diary:
        """Who keeps what has happened to the run."""
        ...

    @property
    def max_steps_in_flight(self) -> int:
        """Steps that may be dispatched before the first of them is known to be finite."""
        ...

    @property
    def nonfinite_limit(self) -> int | None:
        """Refused steps in a row that end the run."""
        ...

    @property
    def spike_threshold(self) -> float | None:
        """How many times their median the loss of a row may be; None: any."""
        ...

    @property
    def guards_transfers(self) -> bool:
        """Whether an implicit transfer in the loop is an error."""
        ...

    @property
    def feeds_host_batches(self) -> bool:
        """Whether small host batches go into the compiled step as they are."""
        ...

    def evaluated_state(self) -> TrainState:
        """Returns the state that evaluations use, such as one with averaged parameters."""
        ...

    def train_executor(self) -> TrainExecutor:
        """Returns the compiled training step."""
        ...

    @property
    def prepare_train_batch(self) -> Preparer:
        """What puts a batch on the devices, in the shape of the training step."""
        ...

    def get_metric_postprocess_fn(self) -> MetricPostprocess:
        """Returns what is applied to host metrics before they are logged."""
        ...

    def notify(self, hook: str, *args: Any) -> None:
        """Calls a hook of the trainer and of every callback that is due."""
        ...

    def step_hooks(self) -> Sequence[StepHook]:
        """Returns the ``on_training_step`` hooks that do something."""
        ...

    def agenda(self, plan: Plan, train_length: int | None) -> Agenda:
        """Returns when something else than a step is due, and the sizes of dispatches."""
        ...

    def end_run(self, reason: StopReason, detail: str = ...) -> None:
        """Ends the run now, as every process does; the first reason is kept."""
        ...

    def tracker(self, iterator: Any, **kwargs: Any) -> Any:
        """Returns the iterator with a progress bar, where one is wanted."""
        ...

    def _run_model_eval(
        self, data_loader: LoaderSource, mode: str = "", epoch_idx: int = -1
    ) -> DeviceMetrics:
        """Returns the metrics of one dataset, still on the devices."""
        ...
