"""How is a step compiled? Donated, with explicit shardings, once for each shape of batch."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.metrics import DeviceMetrics, MetricLayout
from xtrainer.parallel import BatchLayout, replicate
from xtrainer.state import TrainState
from xtrainer.step.settings import StepSettings
from xtrainer.step.signals import SignalPlacer, reduce_signals
from xtrainer.types import BatchLike


@dataclass(frozen=True)
class PlacedBatch:
    """A batch on the devices.

    Attributes:
        data: The user's pytree of global arrays.
        row_mask: bool ``(rows,)``, False for padding.
        rows: Rows including padding, those of all processes.
        examples: Rows without padding; of several processes, as if all had given as many as this.
    """

    data: BatchLike
    row_mask: jax.Array
    rows: int
    examples: int


class _Executor:
    """What the two executors share: the layout, and new windows."""

    def __init__(
        self, metric_layout: MetricLayout, state_shardings: Any, layout: BatchLayout, debug: bool
    ) -> None:
        self._state_shardings = state_shardings
        self._layout = layout
        self._debug = debug
        self._signals = SignalPlacer(layout.mesh) if jax.process_count() > 1 else None
        self._compiled: dict[Any, Callable[..., Any]] = {}
        with jax.ensure_compile_time_eval():
            self._zeros = jax.tree.map(np.array, DeviceMetrics.zeros(metric_layout))

    def new_window(self) -> DeviceMetrics:
        """Returns an empty window on the devices."""
        # A copy: on the CPU a device array may share memory with the host array it came from.
        return replicate(jax.tree.map(np.copy, self._zeros), self._layout.mesh)

    def _arguments(self, batch: PlacedBatch, window: DeviceMetrics, bits: int) -> tuple[Any, ...]:
        arguments = (batch.data, batch.row_mask, window)
        return arguments if self._signals is None else (*arguments, self._signals(bits))

    def _argument_specs(self, data: BatchLike, rows: int) -> tuple[Any, ...]:
        data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)
        window = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._zeros)
        specs = (data, jax.ShapeDtypeStruct((rows,), bool), window)
        if self._signals is None:
            return specs
        return (*specs, jax.ShapeDtypeStruct((self._layout.mesh.size,), np.int32))

    def _jit(self, function: Callable[..., Any], rows: int, outputs: Any, donate: Any) -> Any:
        if self._debug:
            return function
        batch = self._layout.sharding(rows)
        inputs = (self._state_shardings, batch, batch, self._layout.replicated)
        return jax.jit(
            function,
            in_shardings=inputs if self._signals is None else (*inputs, self._signals.sharding),
            out_shardings=outputs,
            donate_argnums=donate,
        )


class TrainExecutor(_Executor):
    """Runs training steps; state and metrics are donated.

    Args:
        make_step: From settings to a step function, see :func:`xtrainer.step.make_train_step`.
        settings: Settings for a full batch.
        metric_layout: Of the step's metrics.
        state_shardings: A sharding per leaf of the state.
        layout: Mesh and batch axes.
        donate_state: Whether the state given to a call may be overwritten.
        debug: Leave the step uncompiled.
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
    ) -> None:
        super().__init__(metric_layout, state_shardings, layout, debug)
        self._make_step = make_step
        self._settings = settings
        self._donate = (0, 3) if donate_state else (3,)
        self._keeps_statistics = bool(jax.tree.leaves(state_shardings.mutable_variables))

    def __call__(
        self, state: TrainState, batch: PlacedBatch, window: DeviceMetrics, bits: int = 0
    ) -> tuple[TrainState, DeviceMetrics, jax.Array]:
        """Returns the next state, the metrics with this step in them, and the step's report.

        ``bits`` is what this process says to the others, see ``xtrainer.step.signals``.
        """
        step = self._compiled.get(batch.rows)
        if step is None:
            step = self._compiled[batch.rows] = self._compile(batch.rows)
        return step(state, *self._arguments(batch, window, bits))

    def lower(self, state: TrainState, data: BatchLike) -> jax.stages.Lowered:
        """Returns the training step for a batch, lowered and not compiled; nothing is computed.

        Args:
            state: Arrays or ``jax.ShapeDtypeStruct``s.
            data: The global batch, or its shapes.
        """
        rows = jax.tree.leaves(data)[0].shape[0]
        return self._compile(rows).lower(state, *self._argument_specs(data, rows))

    def _compile(self, rows: int) -> Callable[..., Any]:
        pieces = micro_batches(rows, self._settings.accumulate_steps, self._keeps_statistics)
        settings = dataclasses.replace(
            self._settings,
            accumulate_steps=pieces,
            accumulate_scan=self._settings.accumulate_scan and not self._debug,  # a scan is traced
        )
        function = self._make_step(settings)
        whole = self._layout.replicated
        return self._jit(function, rows, (self._state_shardings, whole, whole), self._donate)


class EvalExecutor(_Executor):
    """Runs evaluation steps; the metrics are donated, the state is not.

    Args:
        step: See :func:`xtrainer.step.make_eval_step`.
        metric_layout: Of the step's metrics.
        state_shardings: A sharding per leaf of the state.
        layout: Mesh and batch axes.
        debug: Leave the step uncompiled.
    """

    def __init__(
        self,
        step: Callable[..., DeviceMetrics],
        metric_layout: MetricLayout,
        state_shardings: Any,
        layout: BatchLayout,
        debug: bool = False,
    ) -> None:
        super().__init__(metric_layout, state_shardings, layout, debug)

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
                return window, window.packed.sum()
            return window, jnp.stack(reduce_signals(signals))

        self._step = eval_step

    def __call__(
        self, state: TrainState, batch: PlacedBatch, window: DeviceMetrics, bits: int = 0
    ) -> tuple[DeviceMetrics, jax.Array]:
        """Returns the metrics with this batch in them, and an array to wait for this batch by.

        With several processes it is int32 ``(2,)``: the bits that one and that all have sent.
        """
        spread = self._layout.divides(batch.rows)
        step = self._compiled.get(spread)
        if step is None:
            whole = self._layout.replicated
            step = self._compiled[spread] = self._jit(self._step, batch.rows, whole, (3,))
        return step(state, *self._arguments(batch, window, bits))

    def lower(self, state: TrainState, data: BatchLike) -> jax.stages.Lowered:
        """Returns the evaluation step for a batch, lowered and not compiled; nothing is computed.

        Args:
            state: Arrays or ``jax.ShapeDtypeStruct``s.
            data: The global batch, or its shapes.
        """
        rows = jax.tree.leaves(data)[0].shape[0]
        step = self._jit(self._step, rows, self._layout.replicated, (3,))
        return step.lower(state, *self._argument_specs(data, rows))


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
