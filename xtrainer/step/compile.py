"""How is a step compiled? Donated, with explicit shardings, once for each shape of batch."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.metrics import DeviceMetrics, MetricLayout
from xtrainer.parallel import BatchLayout
from xtrainer.state import TrainState
from xtrainer.step.executor import Executor, PlacedBatch, Program, program_key
from xtrainer.step.flat import Flat, whole
from xtrainer.step.programs import CompileFn, Programs
from xtrainer.step.settings import StepSettings
from xtrainer.step.signals import reduce_signals
from xtrainer.types import BatchLike, PyTree


class TrainExecutor(Executor):
    """Runs training steps; state and metrics are donated.

    A call returns the next state, the metrics with this step in them, and the step's report.

    Args:
        make_step: From settings to a step function, see :func:`xtrainer.step.make_train_step`.
        settings: Settings for a full batch.
        metric_layout: Of the step's metrics.
        state_shardings: A sharding per leaf of the state.
        layout: Mesh and batch axes.
        donate_state: Whether the state given to a call may be overwritten.
        debug: Leave the step uncompiled.
        compile_program: Compiles what was lowered, such as by way of a cache.
    """

    def __init__(
        self,
        make_step: Callable[[StepSettings], Callable[..., Any]],
        settings: StepSettings,
        metric_layout: MetricLayout,
        state_shardings: Any,
        layout: BatchLayout,
        donate_state: bool = True,
        debug: bool = False,
        compile_program: CompileFn | None = None,
    ) -> None:
        super().__init__(
            "train_step", metric_layout, state_shardings, layout, debug, compile_program
        )
        self._make_step = make_step
        self._settings = settings
        self._donate = (0, 3) if donate_state else (3,)
        self._keeps_statistics = bool(jax.tree.leaves(state_shardings.mutable_variables))
        self._masks: dict[tuple[int, ...], jax.Array] = {}

    def many(
        self,
        state: TrainState | Flat,
        batches: Sequence[PlacedBatch],
        window: DeviceMetrics | Flat,
        bits: Sequence[int],
    ) -> Any:
        """Takes several steps in one call, by a scan; gives what as many calls would.

        Args:
            state: The state before them; where it is flat the results are.
            batches: Of one kind.
            window: The metrics so far.
            bits: For each batch, what this process says with it.

        Returns:
            The state after the last step, the metrics with all of them, and int32 ``(steps, 7)``:
            the report of each.

        Raises:
            StepError: As for a single step.
        """
        steps, rows, kind = len(batches), batches[0].rows, batches[0].kind
        data = self._stack([batch.data for batch in batches], rows)
        arguments = {
            "state": state, "batch": data, "row_mask": self._stack_masks(batches), "metrics": window
        }  # fmt: skip
        if self._signals is not None:
            place = self._stacked(self._signals.sharding, steps)
            arguments["signals"] = self._signals.stack(tuple(bits), place)
        program = self._by_kind.get((kind, steps))
        if program is None:
            function, named = self._function(rows, steps), _whole(arguments)
            program = self.programs.get(program_key(data, steps), function, named)
            if kind is not None:
                self._by_kind[kind, steps] = program
        try:
            results = program(*self._flat_arguments(*arguments.values()))
        except (TypeError, ValueError, RuntimeError) as error:
            results = self._call_mended(_whole(arguments), rows, steps, error)
        results = self._named_results(results)
        return results if type(state) is Flat else tuple(whole(result) for result in results)

    def _flat_results(self, results: Any) -> Any:
        state, window, report = results
        return self._state_form.flatten(state), self._window_form.flatten(window), report

    def _named_results(self, results: Any) -> Any:
        state, window, report = results
        return Flat(self._state_form, state), Flat(self._window_form, window), report

    def _make_function(self, rows: int, steps: int) -> tuple[Program, Any, Any]:
        pieces = micro_batches(rows, self._settings.accumulate_steps, self._keeps_statistics)
        settings = dataclasses.replace(
            self._settings,
            accumulate_steps=pieces,
            accumulate_scan=self._settings.accumulate_scan and not self._debug,  # a scan is traced
        )
        step, everywhere = self._make_step(settings), self._layout.replicated
        function = step if steps == 1 else scan_steps(step)
        state = jax.tree.leaves(self._state_shardings)
        return function, (state, everywhere, everywhere), self._donate

    def _stack(self, data: Sequence[PyTree], rows: int) -> PyTree:
        if all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(data[0])):
            return jax.tree.map(lambda *leaves: np.stack(leaves), *data)
        return self._stack_placed(data, rows)

    def _stack_masks(self, batches: Sequence[PlacedBatch]) -> jax.Array:
        key = (batches[0].rows, *[batch.examples for batch in batches])
        if key not in self._masks:
            masks = [batch.row_mask for batch in batches]
            self._masks[key] = self._stack_placed(masks, batches[0].rows)
        return self._masks[key]

    def _stack_placed(self, data: Sequence[PyTree], rows: int) -> PyTree:
        key = ("stack", rows)
        if key not in self._functions:
            place = self._sharding(rows, len(data))
            self._functions[key] = jax.jit(_stack_batches, out_shardings=place)
        return self._functions[key](tuple(data))


class EvalExecutor(Executor):
    """Runs evaluation steps; the metrics are donated, the state is not.

    A call returns the metrics with this batch in them, and an array to wait for this batch by. With
    several processes it is int32 ``(2,)``: the bits that one and that all have sent.

    Args:
        step: See :func:`xtrainer.step.make_eval_step`.
        metric_layout: Of the step's metrics.
        state_shardings: A sharding per leaf of the state.
        layout: Mesh and batch axes.
        debug: Leave the step uncompiled.
        compile_program: Compiles what was lowered, such as by way of a cache.
        reads_optimizer: Whether the step is given the optimizer's state; else it finds ``()``.
    """

    def __init__(
        self,
        step: Callable[..., DeviceMetrics],
        metric_layout: MetricLayout,
        state_shardings: Any,
        layout: BatchLayout,
        debug: bool = False,
        compile_program: CompileFn | None = None,
        reads_optimizer: bool = True,
    ) -> None:
        self._reads_optimizer = reads_optimizer or debug
        shardings = self._part(state_shardings)
        super().__init__("eval_step", metric_layout, shardings, layout, debug, compile_program)
        # Sets of other batch sizes are nothing unusual.
        self.programs = Programs("eval_step", compile_program, logging.INFO)

        def eval_step(
            state: TrainState,
            data: BatchLike,
            row_mask: jax.Array,
            window: DeviceMetrics,
            signals: jax.Array | None = None,
        ) -> tuple[DeviceMetrics, jax.Array]:
            window = step(state, data, row_mask, window)
            # The window is donated to the next call; what is waited for must not be.
            if signals is None:
                return window, window.calls + 0
            return window, jnp.stack(reduce_signals(signals))

        self._step = eval_step

    def _part(self, state: Any) -> Any:
        return state if self._reads_optimizer else state.replace(opt_state=())

    def _make_function(self, rows: int, steps: int) -> tuple[Program, Any, Any]:
        return self._step, self._layout.replicated, (3,)

    def _flat_results(self, results: Any) -> Any:
        window, ticket = results
        return self._window_form.flatten(window), ticket

    def _named_results(self, results: Any) -> Any:
        window, ticket = results
        return Flat(self._window_form, window), ticket


def scan_steps(step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that takes several steps, one for each batch of a stack.

    Args:
        step: Of :func:`xtrainer.step.make_train_step`.

    Returns:
        ``steps(state, batches, row_masks, metrics, signals=None) -> (state, metrics, reports)``;
        all but state and metrics have the steps as first axis.
    """

    def train_steps(
        state: TrainState,
        batches: PyTree,
        row_masks: jax.Array,
        metrics: DeviceMetrics,
        signals: jax.Array | None = None,
    ) -> tuple[TrainState, DeviceMetrics, jax.Array]:
        def body(carry: Any, xs: Any) -> tuple[Any, jax.Array]:
            batch, mask, sent = xs
            state, metrics, report = step(*carry[:1], batch, mask, carry[1], sent)
            return (state, metrics), report

        (state, metrics), reports = jax.lax.scan(
            body, (state, metrics), (batches, row_masks, signals)
        )
        return state, metrics, reports

    return train_steps


def _whole(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: whole(argument) for name, argument in arguments.items()}


def _stack_batches(batches: tuple[PyTree, ...]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


def micro_batches(rows: int, accumulate_steps: int, keeps_statistics: bool = False) -> int:
    """Returns into how many pieces a batch is divided: as many as asked for, where that divides.

    A remainder of another size takes the next larger number that divides it, so that no micro-batch
    is larger than those of a full batch. A model that keeps statistics of its batches takes the
    next smaller one: the variance of a single row would be averaged in as 0.

    Example:
        >>> micro_batches(16, 4), micro_batches(6, 4), micro_batches(3, 4)
        (4, 6, 3)
        >>> micro_batches(6, 4, keeps_statistics=True)
        3
    """
    wanted = min(accumulate_steps, rows)
    numbers = range(wanted, 0, -1) if keeps_statistics else range(wanted, rows + 1)
    return next(pieces for pieces in numbers if rows % pieces == 0)
