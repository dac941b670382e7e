"""What does a prediction step do? What the model says of a batch, a row for each of its rows."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xtrainer.errors import PredictionError
from xtrainer.metrics import DeviceMetrics, MetricLayout
from xtrainer.parallel import BatchLayout
from xtrainer.state import TrainState
from xtrainer.step.apply import BoundApply
from xtrainer.step.executor import Executor, Program
from xtrainer.step.flat import Flat
from xtrainer.step.precision import cast_floating
from xtrainer.step.programs import CompileFn, Programs
from xtrainer.step.rows import arrange_rows, inner_layout
from xtrainer.step.settings import StepSettings
from xtrainer.step.signals import reduce_signals
from xtrainer.tree import flatten_with_paths
from xtrainer.types import ApplyFn, BatchLike, PredictFunction, PyTree

PredictStepFn = Callable[..., PyTree]


def make_predict_step(
    predict_function: PredictFunction, apply_fn: ApplyFn, settings: StepSettings | None = None
) -> PredictStepFn:
    """Returns ``step(state, batch, calls=0) -> outputs``, pure and not compiled.

    Args:
        predict_function: ``(params, apply_fn, batch, rng)`` to any pytree of arrays whose first
            axis is the batch. The key comes from ``seed_eval`` and ``calls``, the number of batches
            before this one.
        apply_fn: The model's ``apply``.
        settings: Precision, ``seed_eval``, layout.

    Example:
        >>> import optax
        >>> state = TrainState.create({"w": jnp.ones(2)}, optax.identity(), jax.random.key(0))
        >>> predict = lambda params, apply_fn, batch, rng: apply_fn({"params": params}, batch)
        >>> step = make_predict_step(predict, lambda variables, x: x @ variables["params"]["w"])
        >>> step(state, jnp.ones((3, 2))).tolist()
        [2.0, 2.0, 2.0]
    """
    settings = settings or StepSettings()
    inner = inner_layout(settings.layout)
    inside = dataclasses.replace(settings, layout=inner)

    def predict_step(state: TrainState, batch: BatchLike, calls: jax.Array | int = 0) -> PyTree:
        rows = jax.tree.leaves(batch)[0].shape[0]
        rng = jax.random.fold_in(jax.random.key(settings.seed_eval), calls)
        params = cast_floating(state.params, settings.precision.compute_dtype)
        batch = arrange_rows(batch, settings.layout, inner)
        bound = BoundApply(apply_fn, state.mutable_variables, inside, rows, train=False)
        return checked_outputs(predict_function(params, bound, batch, rng), rows)

    return predict_step


def checked_outputs(outputs: PyTree, rows: int) -> PyTree:
    """Returns outputs as arrays with a row for each row of a batch.

    Raises:
        PredictionError: If there is none, or one has another first axis.

    Example:
        >>> checked_outputs({"mean": jnp.zeros(())}, 4)
        Traceback (most recent call last):
        xtrainer.errors.PredictionError: For a batch of 4 rows predict_function returned mean: (), \
expected arrays whose first axis is 4. Return one value, or one array, per example.
    """
    arrays = jax.tree.map(jnp.asarray, outputs)
    shapes = {path or "an array": leaf.shape for path, leaf in flatten_with_paths(arrays).items()}
    wrong = [f"{path}: {shape}" for path, shape in shapes.items() if shape[:1] != (rows,)]
    if wrong or not shapes:
        raise PredictionError(
            f"For a batch of {rows} rows predict_function returned {', '.join(wrong) or 'nothing'},"
            f" expected arrays whose first axis is {rows}. Return one value, or one array, per "
            "example."
        )
    return arrays


class PredictExecutor(Executor):
    """Runs prediction steps; nothing is donated.

    A call returns the outputs, which of their rows are no padding, a window that counts the calls,
    and an array to wait for this batch by, as that of :class:`EvalExecutor`. With several processes
    each is given the rows of all, in the order of the global batch.

    Args:
        step: See :func:`make_predict_step`.
        state_shardings: A sharding per leaf of the state.
        layout: Mesh and batch axes.
        debug: Leave the step uncompiled.
        compile_program: Compiles what was lowered, such as by way of a cache.
    """

    def __init__(
        self,
        step: PredictStepFn,
        state_shardings: Any,
        layout: BatchLayout,
        debug: bool = False,
        compile_program: CompileFn | None = None,
    ) -> None:
        nothing = MetricLayout((), ())
        shardings = self._part(state_shardings)
        super().__init__("predict_step", nothing, shardings, layout, debug, compile_program)
        # Loaders of other batch sizes are nothing unusual.
        self.programs = Programs("predict_step", compile_program, logging.INFO)

        def predict_step(
            state: TrainState,
            data: BatchLike,
            row_mask: jax.Array,
            window: DeviceMetrics,
            signals: jax.Array | None = None,
        ) -> tuple[PyTree, jax.Array, DeviceMetrics, jax.Array]:
            outputs, calls = step(state, data, window.calls), window.calls + 1
            window = window.replace(calls=calls)
            if signals is None:
                return outputs, row_mask, window, calls
            # What other processes hold could not be fetched.
            whole = jax.lax.with_sharding_constraint((outputs, row_mask), layout.replicated)
            return *whole, window, jnp.stack(reduce_signals(signals))

        self._step = predict_step

    def _part(self, state: Any) -> Any:
        return state.replace(opt_state=())

    def _make_function(self, rows: int, steps: int) -> tuple[Program, Any, Any]:
        everywhere = self._layout.replicated
        spread = self._sharding(rows, steps) if self._signals is None else everywhere
        return self._step, (spread, spread, everywhere, everywhere), ()

    def _flat_results(self, results: Any) -> Any:
        outputs, mask, window, ticket = results
        return outputs, mask, self._window_form.flatten(window), ticket

    def _named_results(self, results: Any) -> Any:
        outputs, mask, window, ticket = results
        return outputs, mask, Flat(self._window_form, window), ticket
