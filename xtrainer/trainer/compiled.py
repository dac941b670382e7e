"""Which compiled steps does a trainer run, and in which shape do they want a batch?"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from xtrainer.data import num_rows
from xtrainer.launch import compilation_cache
from xtrainer.metrics import MetricLayout
from xtrainer.optim import RegularizationConfig
from xtrainer.parallel import BatchLayout, ParallelConfig
from xtrainer.state import TrainState
from xtrainer.step import (
    EvalExecutor,
    LossTerms,
    PredictExecutor,
    StepSettings,
    TrainExecutor,
    count_flops,
    describe_loss,
    make_count_step,
    make_eval_step,
    make_predict_step,
    train_layout,
)
from xtrainer.trainer.batches import BatchPreparer
from xtrainer.trainer.config import TrainerConfig
from xtrainer.trainer.deterministic import compiler_options
from xtrainer.trainer.tried import trying
from xtrainer.types import ApplyFn, BatchLike, CountFunction, LossFunction, PredictFunction, PyTree


def step_settings(
    config: TrainerConfig,
    layout: BatchLayout,
    state: TrainState,
    freeze: tuple[str, ...] = (),
    parallel: ParallelConfig | None = None,
    regularization: RegularizationConfig | None = None,
) -> StepSettings:
    """Returns the settings of the step functions."""
    parallel = parallel or ParallelConfig()
    return StepSettings(
        accumulate_steps=config.gradient_accumulate_steps,
        accumulate_scan=config.gradient_accumulate_scan,
        precision=config.precision,
        nonfinite_limit=config.nonfinite_limit,
        train_log_modes=tuple(config.default_train_log_modes),
        intermediates_log_modes=tuple(config.intermediates_log_modes),
        log_intermediates=config.log_intermediates,
        log_grad_norm=config.log_grad_norm,
        log_grad_norm_per_param=config.log_grad_norm_per_param,
        log_param_norm=config.log_param_norm,
        log_param_norm_per_param=config.log_param_norm_per_param,
        seed_eval=config.seed_eval,
        layout=layout,
        param_shardings=shardings_of(state.params),
        freeze=freeze,
        opt_state_shardings=(
            shardings_of(state.opt_state) if parallel.offload_optimizer_state else None
        ),
        remat=tuple(parallel.remat),
        remat_policy=parallel.remat_policy,
        regularization=regularization,
    )


def shardings_of(tree: Any) -> Any:
    """Returns the sharding of each leaf."""
    return jax.tree.map(lambda x: x.sharding, tree)


def loss_terms(
    loss_function: LossFunction,
    apply_fn: ApplyFn,
    settings: StepSettings,
    state: TrainState,
    batch: BatchLike,
    train: bool,
) -> LossTerms:
    """Returns the shapes of what the loss gives for a batch, and the names of its metrics."""
    what = f"This was loss_function with train={train}, tried with a batch of"
    with trying(what, batch):
        return describe_loss(
            loss_function, apply_fn, settings, state, batch, num_rows(batch), train
        )


def compile_program(
    config: TrainerConfig, layout: BatchLayout
) -> Callable[..., jax.stages.Compiled]:
    """Returns what compiles a lowered step, as the config asks for."""
    platform = layout.mesh.devices.flat[0].platform
    options = compiler_options(config.deterministic, platform)
    return functools.partial(compilation_cache().compile, options=options)


def train_parts(
    make_step: Callable[[StepSettings], Any],
    terms: LossTerms,
    settings: StepSettings,
    layout: BatchLayout,
    config: TrainerConfig,
    state: TrainState,
    batch: BatchLike,
) -> tuple[TrainExecutor, BatchPreparer]:
    """Returns the compiled training step and what prepares its batches.

    Args:
        make_step: From settings to a step function.
        terms: Of :func:`loss_terms` with ``train=True``.
        settings: For a full batch.
        layout: Mesh and batch axes.
        config: Donation, debugging.
        state: Its layout is kept.
        batch: Every batch must look like it, but for its rows.
    """
    executor = TrainExecutor(
        make_step,
        settings,
        train_layout(terms.layout, state.params, settings),
        shardings_of(state),
        layout,
        config.donate_train_state,
        config.debug,
        compile_program(config, layout),
    )
    # Collections that a model updates (batch statistics) are computed from padded rows as well.
    paddable = terms.paddable and not jax.tree.leaves(state.mutable_variables)
    return executor, BatchPreparer(layout, paddable, settings.accumulate_steps, batch)


def eval_parts(
    loss_function: LossFunction,
    apply_fn: ApplyFn,
    settings: StepSettings,
    layout: BatchLayout,
    config: TrainerConfig,
    state: TrainState,
    batch: BatchLike,
    step: Any = None,
) -> tuple[EvalExecutor, BatchPreparer]:
    """Returns the compiled evaluation step of a loss and what prepares its batches."""
    terms = loss_terms(loss_function, apply_fn, settings, state, batch, train=False)
    options = (config.debug, compile_program(config, layout), step is not None)
    step = make_eval_step(loss_function, apply_fn, settings) if step is None else step
    executor = EvalExecutor(step, terms.layout, shardings_of(state), layout, *options)
    return executor, BatchPreparer(layout, terms.paddable)


def predict_parts(
    predict_function: PredictFunction,
    apply_fn: ApplyFn,
    settings: StepSettings,
    layout: BatchLayout,
    config: TrainerConfig,
    state: TrainState,
) -> tuple[PredictExecutor, BatchPreparer]:
    """Returns the compiled prediction step of a function and what prepares its batches."""
    step = make_predict_step(predict_function, apply_fn, settings)
    options = (config.debug, compile_program(config, layout))
    executor = PredictExecutor(step, shardings_of(state), layout, *options)
    return executor, BatchPreparer(layout, paddable=True)


def count_parts(
    count_function: CountFunction,
    size: int,
    apply_fn: ApplyFn,
    settings: StepSettings,
    layout: BatchLayout,
    config: TrainerConfig,
    state: TrainState,
) -> tuple[EvalExecutor, BatchPreparer]:
    """Returns the compiled step that counts ``size`` things and what prepares its batches."""
    step = make_count_step(count_function, apply_fn, settings)
    counts = MetricLayout.of({str(number): ("sum",) for number in range(size)})
    options = (config.debug, compile_program(config, layout), False)
    executor = EvalExecutor(step, counts, shardings_of(state), layout, *options)
    return executor, BatchPreparer(layout, paddable=True)


def step_flops(
    make_step: Callable[[StepSettings], Any],
    settings: StepSettings,
    state: TrainState,
    batch: BatchLike,
    rows: int,
) -> float:
    """Returns the floating-point operations of a training step, of all devices together.

    Those of the model: the batch as a whole on one device, and nothing computed again.

    Args:
        make_step: From settings to a step function.
        settings: Of the training step.
        state: For its shapes.
        batch: Shapes of a batch of any number of rows.
        rows: Rows of the batch that is counted.
    """
    plain = dataclasses.replace(
        settings,
        accumulate_steps=1,
        remat=(),
        layout=None,
        param_shardings=None,
        opt_state_shardings=None,
    )

    def shapes(tree: PyTree, resize: Callable[[Any], tuple[int, ...]]) -> PyTree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(resize(x), x.dtype), tree)

    batch = shapes(batch, lambda x: (rows, *x.shape[1:]))
    return count_flops(make_step(plain), shapes(state, lambda x: x.shape), batch)
