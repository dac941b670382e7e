"""What can be asked of a trainer? Its step, sizes and rates, and that it ends a run."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import jax

from xtrainer.callbacks import EarlyStopping, Plugin
from xtrainer.checkpoint import Saved
from xtrainer.data import batch_spec, num_rows
from xtrainer.errors import ConfigError, did_you_mean
from xtrainer.launch import process_count
from xtrainer.loggers import run_folder
from xtrainer.loop import StopReason
from xtrainer.state import TrainState
from xtrainer.trainer import compiled, overview, plugins, resize
from xtrainer.trainer.assemble import model_layout
from xtrainer.trainer.parts import TrainerParts
from xtrainer.trainer.rate import rate_at, rate_factor, set_rate
from xtrainer.trainer.view import TrainerView
from xtrainer.tree import num_elements
from xtrainer.types import BatchLike


class TrainerAnswers(TrainerParts):
    """A trainer that can tell of its parts, and be asked to stop."""

    stop_reason: StopReason | None
    stop_wanted: tuple[StopReason, str] | None

    @property
    def global_step(self) -> int:
        """The number of the newest step."""
        return self.progress.step

    @property
    def log_path(self) -> Path | None:
        """The run folder."""
        return run_folder(self.trainer_config.logger)

    def evaluated_state(self) -> TrainState:
        """Returns the state that evaluations use: with ``EMAConfig``, of averaged parameters."""
        state = self.state
        for callback in self.callbacks:
            state = callback.evaluated_state(state)
        return state

    @property
    def plugins(self) -> dict[str, Plugin]:
        """The plug-ins among the callbacks by the name of their class."""
        return plugins.by_name(self.callbacks)

    def tabulate_params(self) -> str:
        """Returns a table of the parameters: layout, size in all and per device, optimizer.

        Below it stands a sentence for each rule of the layout that laid out nothing.
        """
        table = overview.tabulate(cast(TrainerView, self))
        exmp_input = jax.eval_shape(self.batch_to_input, batch_spec(self.exmp_batch))
        where = (self.mesh, self.model_config.parallel)
        return "\n".join([table, *model_layout(self.run_model_init, exmp_input, *where).unused])

    @property
    def validation_loaders(self) -> dict[str | None, Iterable[BatchLike]]:
        """The loaders of the validation sets of the run under way, by their names."""
        titles = {name: "val" if name is None else f"val/{name}" for name in self.validation_sets}
        found = {name: self.sources.current(title) for name, title in titles.items()}
        return {name: cast(Any, source) for name, source in found.items() if source is not None}

    def get_num_params(self) -> int:
        """Returns the number of parameters."""
        return num_elements(self.state.params)

    def set_dataset(self, dataset: Any) -> None:
        """Shares a dataset with the callbacks."""
        self.dataset = dataset
        for callback in self.callbacks:
            callback.set_dataset(dataset)

    def learning_rate(
        self, step: int, skipped: int | None = None, group: str | None = None
    ) -> float | None:
        """Returns the learning rate that the update of a step used; None where it is not known.

        Args:
            step: The step; of a refused one, the rate of the last update before it.
            skipped: Refused steps up to that one; as many as by now where None.
            group: One of ``group_schedules``; None: that of the parameters of no group.

        Raises:
            ConfigError: If there is no such group.
        """
        if group is not None and group not in self.group_schedules:
            known = did_you_mean(group, self.group_schedules)
            raise ConfigError(f"learning_rate: found no group {group!r}. {known}")
        schedule = self.lr_schedule if group is None else self.group_schedules[group]
        if schedule is None:
            return None
        updates = step - (self.progress.skipped if skipped is None else skipped)
        rate = rate_at(schedule, max(updates - 1, 0))
        now = rate_factor(self.trainer_config, self.progress, self.callbacks)
        return rate * self.rates.of_update(step, now)

    def update_learning_rate(self) -> None:
        """Lets the next step use the product of all callbacks' ``learning_rate_factor``.

        Raises:
            ConfigError: If the optimizer was not built for that, see
                ``CallbackConfig.changes_learning_rate``.
        """
        set_rate(self)

    @property
    def train_batch_size(self) -> int:
        """Rows of a full batch of the training pass under way, of all processes.

        Raises:
            ConfigError: If there is no training loader yet, or it cannot change them.
        """
        return resize.train_batch_size(cast(TrainerView, self))

    def check_batch_sizes(self, sizes: Sequence[int]) -> None:
        """Refuses batch sizes that training cannot meet, all at once; tells of the others.

        Raises:
            ConfigError: Listing them.
        """
        resize.check_batch_sizes(cast(TrainerView, self), sizes)

    def set_batch_size(self, rows: int, begun: Callable[[int], None] = lambda rows: None) -> None:
        """Makes training batches larger or smaller from the next pass on.

        The step is compiled for them meanwhile. The training loader must be able to change them
        (:class:`xtrainer.types.ResizableLoader`).

        Args:
            rows: Of a full batch, of all processes.
            begun: Called with ``rows`` when the first pass of that size begins.

        Raises:
            ConfigError: If there is no training loader yet, or it cannot change them.
            LoaderError: If there can be no such batches.
        """
        resize.set_batch_size(cast(TrainerView, self), rows, begun)

    @property
    def mean_step_s(self) -> float:
        """Seconds per step of this run so far, without waits for data and all that is between."""
        return self.ledger.mean_step_s(self.progress.step)

    @property
    def evaluations_without_improvement(self) -> int:
        """Evaluations since the metric of the first ``EarlyStopping`` was best; 0 without one."""
        stopping = next((c for c in self.callbacks if isinstance(c, EarlyStopping)), None)
        return stopping.standing.waited if stopping and stopping.standing else 0

    def step_flops(self) -> float:
        """Returns the floating-point operations of a step on a full batch, of all devices."""
        settings, batch = self.step_settings(), batch_spec(self.exmp_batch)
        rows = self.progress.batch_rows or num_rows(batch)
        make = self.create_training_step_function
        return compiled.step_flops(make, settings, self.state, batch, rows)

    def note_saved(self, saved: Saved) -> None:
        """Writes down that a save is over; called by another thread."""
        self.journal.checkpoint(saved)

    def request_stop(self, reason: StopReason = StopReason.REQUESTED, detail: str = "") -> None:
        """Ends training after this step; the first reason is kept.

        Any process may ask; all stop at the same step, and only then ``stop_reason`` is set.
        """
        if process_count() == 1:
            self.end_run(reason, detail)
        elif self.stop_wanted is None:
            self.stop_wanted = (reason, detail)

    @property
    def should_stop(self) -> bool:
        """Whether the run is about to end: a callback that takes long may look, and end first."""
        return self.stop_reason is not None or self.stop_wanted is not None

    def end_run(self, reason: StopReason, detail: str = "") -> None:
        """Ends training now, on a process alone or where all processes do; first reason is kept."""
        if self.stop_reason is None:
            self.stop_reason, self.stop_detail = reason, detail
