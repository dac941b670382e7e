"""What is a trainer made of? Configs become a mesh, a model, a state and compiled steps."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, cast

import jax
import optax
from jax.sharding import Mesh

from xtrainer.callbacks import (
    Callback,
    CallbackConfig,
    CallbackTrainer,
    ModelCheckpoint,
    ProgressBarConfig,
    build_callbacks,
)
from xtrainer.config import check_configs
from xtrainer.data import batch_spec, num_rows
from xtrainer.errors import readable
from xtrainer.launch import (
    enable_compilation_cache,
    is_main_process,
    peers,
    process_index,
)
from xtrainer.launch.interrupts import Interrupts
from xtrainer.loggers import LoggerConfig, build_loggers
from xtrainer.loop import Ledger, OpenRows, RowKeeper, Setback, StopReason, Watcher
from xtrainer.metrics import DeviceMetrics, History
from xtrainer.optim import (
    REST,
    OptimizerConfig,
    build_optimizer,
    build_schedules,
    frozen_patterns,
    regularization_of,
    scalable,
)
from xtrainer.parallel import BatchLayout, build_mesh, check_mesh
from xtrainer.state import Progress, TrainState
from xtrainer.step import StepSettings, make_eval_step, make_train_step, train_layout, whole
from xtrainer.trainer import compiled, plugins
from xtrainer.trainer.assemble import (
    BegunState,
    abstract_state,
    begin_state,
    build_model,
)
from xtrainer.trainer.black_box import BlackBox
from xtrainer.trainer.config import ModelConfig, TrainerConfig
from xtrainer.trainer.journal import RunJournal
from xtrainer.trainer.logged import logged_rows
from xtrainer.trainer.rate import RateFactors, changes_rate
from xtrainer.trainer.saving import check_averages, check_folders, config_to_json
from xtrainer.trainer.seams import TrainerSeams
from xtrainer.trainer.shapes import wants_shapes
from xtrainer.trainer.shared import check_same_configs
from xtrainer.trainer.sources import Sources
from xtrainer.trainer.view import RunDiary, TrainerView
from xtrainer.types import (
    BatchLike,
    HostMetrics,
    PyTree,
    Schedule,
)


class TrainerParts(TrainerSeams):
    """The parts of a trainer; a subclass may replace each of them.

    The constructor's arguments are those of :class:`TrainerModule`, which adds what a trainer does.
    """

    model_class: ClassVar[Any] = None
    group_schedules: Mapping[str, Schedule] = MappingProxyType({})
    """The model's class, for a ``ModelConfig`` and for checkpoints that name none."""
    carried: Any
    """The state as the newest step has left it, perhaps flat, or one that is being compiled;
    ``state`` is the finished one."""
    progress: Progress
    callbacks: list[Callback]
    stop_reason: StopReason | None
    stop_detail: str
    stop_wanted: tuple[StopReason, str] | None
    setback: Setback | None
    first_step: bool
    ledger: Ledger
    history: History
    """The rows of metrics of the run by set, see :class:`xtrainer.metrics.History`."""
    has_validation: bool
    validation_sets: tuple[str | None, ...]
    total_steps: int | None
    dataset: Any
    row_keeper: RowKeeper
    restored_rows: OpenRows | None
    interrupts: Interrupts
    black_box: Watcher
    journal: RunDiary
    may_save_failed: bool
    results_so_far: dict[str, HostMetrics]
    """What ``train_model`` returns where the run ends now."""
    is_own_state: bool
    """Whether the state comes from this run: trained here, or loaded from its own folder."""

    @readable
    def __init__(
        self,
        trainer_config: TrainerConfig,
        model_config: ModelConfig,
        optimizer_config: OptimizerConfig | optax.GradientTransformation,
        batch: BatchLike,
        mesh: Mesh | None = None,
    ) -> None:
        check_configs(trainer=trainer_config, model=model_config, optimizer=optimizer_config)
        trainer_config, model_config = plugins.configured(trainer_config, model_config)
        num_rows(batch)
        self.ledger = Ledger()
        with self.ledger.spent("init"):
            self._assemble(trainer_config, model_config, optimizer_config, batch, mesh)

    def _assemble(
        self,
        trainer_config: TrainerConfig,
        model_config: ModelConfig,
        optimizer_config: OptimizerConfig | optax.GradientTransformation,
        batch: BatchLike,
        mesh: Mesh | None,
    ) -> None:
        self.trainer_config, self.model_config = trainer_config, model_config
        self.optimizer_config, self.exmp_batch = optimizer_config, batch
        data = (trainer_config.loader_timeout_s, trainer_config.on_changed_data)
        self.progress, self.sources = Progress(), Sources(*data)
        self.stop_reason, self.stop_detail, self.first_step = None, "", True
        self.stop_wanted, self.setback, self.dataset, self.is_own_state = None, None, None, False
        self.row_keeper, self.restored_rows, self.may_save_failed = OpenRows(), None, False
        self.interrupts, self.rates = Interrupts(enabled=False), RateFactors()
        self.history = History(lambda mode: logged_rows(self.trainer_config.logger, mode))
        self.black_box = BlackBox(cast(TrainerView, self))
        self.journal = RunJournal(cast(TrainerView, self))
        peers.watch()  # also where the program has joined the processes without xtrainer
        if cache := trainer_config.compilation_cache:  # before anything is compiled
            enable_compilation_cache(None if cache is True else cache)
        check_same_configs(lambda: config_to_json(cast(TrainerView, self)))
        self.has_validation, self.validation_sets, self.total_steps = False, (), None
        self.init_logger(trainer_config.logger)
        self.init_mesh(model_config, mesh)
        self.build_model(model_config)
        self.init_optimizer(optimizer_config)
        self.init_model(jax.eval_shape(self.batch_to_input, batch_spec(batch)))
        self.init_callbacks(trainer_config.callbacks)
        self.create_jitted_functions()  # while the program that makes the state is compiled
        self.state = self.state

    # What the constructor calls, in this order; each sets attributes.

    def init_logger(self, logger_config: LoggerConfig | None) -> None:
        """Sets ``logger``; nothing is written before the first row."""
        self.logger = build_loggers(
            None if wants_shapes() else logger_config,
            is_main=is_main_process(),
            process_index=process_index(),
        )

    def init_mesh(self, model_config: ModelConfig, mesh: Mesh | None = None) -> None:
        """Sets ``mesh`` and ``batch_partition_specs``."""
        self.mesh = build_mesh(model_config.parallel) if mesh is None else mesh
        check_mesh(self.mesh, model_config.parallel)
        self.batch_layout = BatchLayout.of(self.mesh, model_config.parallel)
        self.batch_partition_specs = self.batch_layout.spec
        self.sources.shard = self.batch_layout.shard

    @property
    def state(self) -> TrainState:
        """The state of training; a step is given it and may overwrite its arrays."""
        carried = self.carried
        if not isinstance(carried, TrainState):
            ready = carried.result() if isinstance(carried, BegunState) else whole(carried)
            self.carried = carried = ready
        return carried

    @state.setter
    def state(self, state: TrainState) -> None:
        self.carried = state

    @property
    def _shapes(self) -> TrainState:
        """The state, or its shapes while it is being compiled."""
        return self.carried.shapes if isinstance(self.carried, BegunState) else self.state

    def build_model(self, model_config: ModelConfig) -> None:
        """Sets ``model``."""
        self.model = build_model(model_config, type(self).model_class)

    def init_optimizer(
        self, optimizer_config: OptimizerConfig | optax.GradientTransformation
    ) -> None:
        """Sets ``optimizer``, ``lr_schedule`` and ``group_schedules``."""
        counts = self.batch_layout.num_shards, self.trainer_config.gradient_accumulate_steps
        self.optimizer, self.lr_schedule = build_optimizer(optimizer_config, *counts)
        if isinstance(optimizer_config, OptimizerConfig):
            rates = build_schedules(optimizer_config, *counts)
            self.group_schedules = {name: rate for name, rate in rates.items() if name != REST}
        if changes_rate(self.trainer_config):
            self.optimizer = scalable(self.optimizer)

    def init_model(self, exmp_input: PyTree) -> None:
        """Sets ``state``, initialized in parallel on the devices where each part lives.

        Within :func:`xtrainer.trainer.shapes_only` it is set to shapes, and nothing is computed.
        """
        make_state = abstract_state if wants_shapes() else begin_state
        self.carried = make_state(
            self.run_model_init,
            exmp_input,
            self.optimizer,
            self.trainer_config.seed,
            self.mesh,
            self.model_config.parallel,
            self.trainer_config.precision,
        )

    def init_callbacks(
        self, callback_configs: Sequence[CallbackConfig], data_module: Any = None
    ) -> None:
        """Sets ``callbacks``; a progress bar is added where one is wanted."""
        bar = [ProgressBarConfig()] if self.trainer_config.enable_progress_bar else []
        made = build_callbacks([*callback_configs, *bar], cast(CallbackTrainer, self), data_module)
        # What the others log and remember of a step belongs into its checkpoint.
        self.callbacks = sorted(made, key=lambda callback: isinstance(callback, ModelCheckpoint))
        check_folders(self.callbacks)
        check_averages(self.callbacks)
        self.sources.process = plugins.processing(self.callbacks)

    def create_jitted_functions(self) -> None:
        """Sets the compiled steps (compiled when first called) and what prepares their batches."""
        terms = self._loss_terms(self.exmp_batch, train=True)
        self.compiled_train_step, self.prepare_train_batch = compiled.train_parts(
            self.create_training_step_function,
            terms,
            self.step_settings(),
            self.batch_layout,
            self.trainer_config,
            self._shapes,
            batch_spec(self.exmp_batch),
        )
        self.compiled_evaluations: dict[Any, Any] = {}  # of other losses, and of counts
        self.compiled_predictions: dict[Callable[..., Any], Any] = {}
        name = "create_evaluation_step_function"
        is_own = getattr(type(self), name) is not getattr(TrainerParts, name)
        self.compiled_eval_step, self.prepare_eval_batch = self.compile_evaluation(
            self.loss_function, self.create_evaluation_step_function() if is_own else None
        )

    def compile_evaluation(self, loss_function: Callable[..., Any], step: Any = None) -> Any:
        """Returns the compiled evaluation step of a loss and what prepares its batches.

        A ``step`` of a subclass is given the whole state; the default one, for None, goes without
        the optimizer's, whose arrays would only make each call longer.
        """
        settings, batch = self.step_settings(), batch_spec(self.exmp_batch)
        parts = (settings, self.batch_layout, self.trainer_config, self._shapes, batch, step)
        return compiled.eval_parts(loss_function, self.model.apply, *parts)

    def step_settings(self) -> StepSettings:
        """Returns the settings of the step functions."""
        freeze, parallel = frozen_patterns(self.optimizer_config), self.model_config.parallel
        parts = (self.trainer_config, self.batch_layout, self._shapes)
        regularization = regularization_of(self.optimizer_config)
        return compiled.step_settings(*parts, freeze, parallel, regularization)

    def create_training_step_function(
        self, settings: StepSettings | None = None
    ) -> Callable[..., Any]:
        """Returns the pure training step; see :func:`xtrainer.make_train_step`."""
        settings = settings or self.step_settings()
        return make_train_step(self.loss_function, self.model.apply, self.optimizer, settings)

    def create_evaluation_step_function(self) -> Callable[..., Any]:
        """Returns the pure evaluation step; see :func:`xtrainer.make_eval_step`."""
        return make_eval_step(self.loss_function, self.model.apply, self.step_settings())

    def init_train_metrics(self, batch: BatchLike = None) -> DeviceMetrics:
        """Returns empty training metrics for a batch, by default the example batch."""
        terms = self._loss_terms(self.exmp_batch if batch is None else batch, train=True)
        settings = self.step_settings()
        return DeviceMetrics.zeros(train_layout(terms.layout, self.state.params, settings))

    def init_eval_metrics(self, batch: BatchLike = None) -> DeviceMetrics:
        """Returns empty evaluation metrics for a batch, by default the example batch."""
        terms = self._loss_terms(self.exmp_batch if batch is None else batch, train=False)
        return DeviceMetrics.zeros(terms.layout)

    def _loss_terms(self, batch: BatchLike, train: bool) -> Any:
        parts = (self.step_settings(), self._shapes, batch_spec(batch), train)
        return compiled.loss_terms(self.loss_function, self.model.apply, *parts)
