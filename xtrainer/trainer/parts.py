"""What is a trainer made of? Configs become a mesh, a model, a state and compiled steps."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
from xtrainer.data import batch_spec, get_input, num_rows
from xtrainer.hooks import Hooks
from xtrainer.launch import (
    enable_compilation_cache,
    is_main_process,
    peers,
    process_count,
    process_index,
)
from xtrainer.launch.interrupts import Interrupts
from xtrainer.loggers import LoggerConfig, build_loggers, run_folder
from xtrainer.loop import Ledger, OpenRows, RowKeeper, Setback, StopReason, Watcher
from xtrainer.metrics import DeviceMetrics, parameter_table
from xtrainer.optim import (
    OptimizerConfig,
    build_optimizer,
    decayed_params,
    frozen_patterns,
    path_mask,
    scalable,
)
from xtrainer.parallel import BatchLayout, build_mesh, check_mesh
from xtrainer.state import Progress, TrainState
from xtrainer.step import StepSettings, make_eval_step, make_train_step, train_layout, whole
from xtrainer.trainer import compiled
from xtrainer.trainer.assemble import (
    BegunState,
    abstract_state,
    begin_state,
    build_model,
    init_variables,
    model_layout,
)
from xtrainer.trainer.black_box import BlackBox
from xtrainer.trainer.config import ModelConfig, TrainerConfig
from xtrainer.trainer.saving import check_folders, config_to_json
from xtrainer.trainer.shapes import wants_shapes
from xtrainer.trainer.shared import check_same_configs
from xtrainer.trainer.sources import Sources
from xtrainer.trainer.view import TrainerView
from xtrainer.tree import num_elements
from xtrainer.types import (
    ApplyFn,
    BatchLike,
    LossOutput,
    MetricPostprocess,
    PRNGKey,
    PyTree,
)


class TrainerParts(Hooks):
    """The parts of a trainer and the seams by which a subclass replaces one of them.

    The constructor's arguments are those of :class:`TrainerModule`, which adds what a trainer does.
    """

    model_class: ClassVar[Any] = None
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
    has_validation: bool
    total_steps: int | None
    dataset: Any
    row_keeper: RowKeeper
    restored_rows: OpenRows | None
    interrupts: Interrupts
    black_box: Watcher
    is_own_state: bool
    """Whether the state comes from this run: trained here, or loaded from its own folder."""

    def __init__(
        self,
        trainer_config: TrainerConfig,
        model_config: ModelConfig,
        optimizer_config: OptimizerConfig | optax.GradientTransformation,
        batch: BatchLike,
        mesh: Mesh | None = None,
    ) -> None:
        check_configs(trainer=trainer_config, model=model_config, optimizer=optimizer_config)
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
        self.row_keeper, self.restored_rows = OpenRows(), None
        self.interrupts = Interrupts(enabled=False)
        self.black_box = BlackBox(cast(TrainerView, self))
        peers.watch()  # also where the program has joined the processes without xtrainer
        if cache := trainer_config.compilation_cache:  # before anything is compiled
            enable_compilation_cache(None if cache is True else cache)
        check_same_configs(lambda: config_to_json(cast(TrainerView, self)))
        self.has_validation, self.total_steps = False, None
        self.init_logger(trainer_config.logger)
        self.init_mesh(model_config, mesh)
        self.build_model(model_config)
        self.init_optimizer(optimizer_config)
        self.init_model(jax.eval_shape(self.batch_to_input, batch_spec(batch)))
        self.init_callbacks(trainer_config.callbacks)
        self.create_jitted_functions()  # while the program that makes the state is compiled
        self.state = self.state

    # What a subclass writes, and what it may replace.

    def loss_function(
        self, params: PyTree, apply_fn: ApplyFn, batch: BatchLike, rng: PRNGKey, train: bool = True
    ) -> LossOutput:
        """Returns ``(loss, (metrics, mutable_variables))`` of a batch; the subclass writes it.

        Args:
            params: The model's parameters.
            apply_fn: The model's ``apply``; collections that are not passed come from the state.
            batch: A batch; with accumulation a micro-batch.
            rng: Typed key of this step and micro-batch.
            train: Whether this is a training step.

        Returns:
            The loss and each metric are a scalar (a mean over the batch), an array whose first
            axis is the batch, or ``{"value": ..., "count": ...}``: a sum and its weight, or
            arrays of values and weights. A metric may add ``"log_modes"``. Collections the model
            updated may be returned; those ``apply_fn`` has gathered by itself need not be.

        Raises:
            TypeError: If the subclass has no loss function.
        """
        raise TypeError(f"{type(self).__name__} must define loss_function(...).")

    @staticmethod
    def batch_to_input(batch: BatchLike) -> PyTree:
        """Returns what the model is initialized with; a tuple stands for several arguments.

        Only shapes are asked for: it is traced and never computed.
        """
        return get_input(batch)

    @staticmethod
    def get_model_rng(rng: PRNGKey) -> dict[str, PRNGKey]:
        """Returns the keys for ``init``, by name."""
        return dict(zip(("params", "dropout"), jax.random.split(rng), strict=True))

    def run_model_init(self, exmp_input: PyTree, init_rng: PRNGKey) -> Mapping[str, Any]:
        """Returns the model's initial variables; called inside a compiled function."""
        return init_variables(self.model, exmp_input, self.get_model_rng(init_rng))

    def get_metric_postprocess_fn(self) -> MetricPostprocess:
        """Returns what is applied to host metrics before they are logged and returned."""
        return lambda metrics: metrics

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
        """Sets ``optimizer`` and ``lr_schedule``."""
        self.optimizer, self.lr_schedule = build_optimizer(optimizer_config)
        if self.trainer_config.rollback_lr_scale != 1:
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
        self.compiled_evaluations: dict[Callable[..., Any], Any] = {}  # of other losses
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
        return compiled.step_settings(*parts, freeze, parallel)

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

    # What can be asked of the parts.

    @property
    def global_step(self) -> int:
        """The number of the newest step."""
        return self.progress.step

    @property
    def log_path(self) -> Path | None:
        """The run folder."""
        return run_folder(self.trainer_config.logger)

    def tabulate_params(self) -> str:
        """Returns a table of the parameters: layout, size in all and per device, optimizer.

        Below it stands a sentence for each rule of the layout that laid out nothing.
        """
        params = self.state.params
        frozen = path_mask(frozen_patterns(self.optimizer_config), None)(params)
        table = parameter_table(params, decayed_params(self.optimizer_config, params), frozen)
        exmp_input = jax.eval_shape(self.batch_to_input, batch_spec(self.exmp_batch))
        where = (self.mesh, self.model_config.parallel)
        return "\n".join([table, *model_layout(self.run_model_init, exmp_input, *where).unused])

    def get_num_params(self) -> int:
        """Returns the number of parameters."""
        return num_elements(self.state.params)

    def set_dataset(self, dataset: Any) -> None:
        """Shares a dataset with the callbacks."""
        self.dataset = dataset
        for callback in self.callbacks:
            callback.set_dataset(dataset)

    def learning_rate(self, step: int, skipped: int | None = None) -> float | None:
        """Returns the learning rate that the update of a step used; None where it is not known.

        Args:
            step: The step; of a refused one, the rate of the last update before it.
            skipped: Refused steps up to that one; as many as by now where None.
        """
        if self.lr_schedule is None:
            return None
        updates = step - (self.progress.skipped if skipped is None else skipped)
        rate = float(jax.device_get(self.lr_schedule(max(updates - 1, 0))))
        return rate * self.trainer_config.rollback_lr_scale ** len(self.progress.rollbacks)

    def step_flops(self) -> float:
        """Returns the floating-point operations of a step on a full batch, of all devices."""
        settings, batch = self.step_settings(), batch_spec(self.exmp_batch)
        rows = self.progress.batch_rows or num_rows(batch)
        make = self.create_training_step_function
        return compiled.step_flops(make, settings, self.state, batch, rows)

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
