"""What do the functions of this room need of a trainer?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import optax
from jax.sharding import Mesh

from xtrainer.callbacks import Callback
from xtrainer.checkpoint import Saved
from xtrainer.data import LoaderSource
from xtrainer.loggers import LoggerTool
from xtrainer.loop import Diary, LoopTrainer, StopReason
from xtrainer.metrics import DeviceMetrics
from xtrainer.optim import OptimizerConfig
from xtrainer.parallel import BatchLayout
from xtrainer.state import Progress, Rollback, TrainState
from xtrainer.step import EvalExecutor, StepSettings, TrainExecutor
from xtrainer.trainer.batches import BatchPreparer
from xtrainer.trainer.config import ModelConfig, TrainerConfig
from xtrainer.trainer.rate import RateFactors
from xtrainer.trainer.sources import Sources
from xtrainer.types import ApplyFn, BatchLike, HostMetrics, LossOutput, PRNGKey, PyTree


class RunDiary(Diary, Protocol):
    """Who keeps what has happened to a run, from its beginning to its end."""

    def start(self, online: bool) -> None:
        """Begins with a run."""
        ...

    def checkpoint(self, saved: Saved) -> None:
        """Notes that a save is over; called by another thread."""
        ...

    def rollback(self, rollback: Rollback) -> None:
        """Notes that the run has gone back."""
        ...

    def stop(self, error: BaseException | None) -> None:
        """Ends with a run."""
        ...

    def give_up(self, reason: str, exit_code: int) -> None:
        """Notes that the process is about to be ended; called by another thread."""
        ...


class TrainerView(LoopTrainer, Protocol):
    """A trainer as the functions that start, save and restore it see it."""

    trainer_config: TrainerConfig
    model_config: ModelConfig
    optimizer_config: OptimizerConfig | optax.GradientTransformation
    exmp_batch: BatchLike
    model: Any
    optimizer: optax.GradientTransformation
    mesh: Mesh
    state: TrainState
    progress: Progress
    callbacks: list[Callback]
    sources: Sources
    batch_layout: BatchLayout
    prepare_train_batch: BatchPreparer
    prepare_eval_batch: BatchPreparer
    stop_reason: StopReason | None
    stop_detail: str
    compiled_train_step: TrainExecutor
    compiled_eval_step: EvalExecutor
    compiled_evaluations: dict[Any, Any]
    compiled_predictions: dict[Callable[..., Any], Any]
    has_validation: bool
    validation_sets: tuple[str | None, ...]
    total_steps: int | None
    logger: LoggerTool
    journal: RunDiary
    is_own_state: bool
    rates: RateFactors

    @property
    def log_path(self) -> Path | None:
        """The run folder."""
        ...

    @property
    def log_every_n_steps(self) -> int:
        """Steps of a row."""
        ...

    def step_flops(self) -> float:
        """Returns the floating-point operations of a training step, of all devices together."""
        ...

    def request_stop(self, reason: StopReason = ..., detail: str = "") -> None:
        """Ends training after this step; the first reason is kept."""
        ...

    def step_settings(self) -> StepSettings:
        """Returns the settings of the step functions."""
        ...

    def loss_function(
        self, params: PyTree, apply_fn: ApplyFn, batch: BatchLike, rng: PRNGKey, train: bool = True
    ) -> LossOutput:
        """Returns the loss, metrics and mutable variables of a batch."""
        ...

    def get_num_params(self) -> int:
        """Returns the number of parameters."""
        ...

    def init_eval_metrics(self, batch: BatchLike = None) -> DeviceMetrics:
        """Returns empty evaluation metrics for a batch."""
        ...

    def test_eval_function(self, val_loader: Any) -> None:
        """Runs the evaluation step on one batch."""
        ...

    def test_model(
        self, test_loader: Any, apply_callbacks: bool = False, epoch_idx: int = 0
    ) -> HostMetrics:
        """Returns the metrics of the test sets."""
        ...

    def log_training_info(
        self,
        num_epochs: int | None,
        num_train_steps: int | None,
        steps_per_epoch: int | None,
        train_loader: LoaderSource,
        val_loader: Any,
        test_loader: Any,
    ) -> None:
        """Says what is about to run."""
        ...

    def log_training_summary(self) -> None:
        """Says what has run."""
        ...

    def on_exception(self, error: BaseException) -> None:
        """See ``Hooks``."""
        ...

    def finalize(self, status: str) -> None:
        """See ``Hooks``."""
        ...
