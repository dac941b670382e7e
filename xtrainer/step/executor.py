"""How is a compiled step called? By the kind of batch it was compiled for, ahead where possible."""

import abc
import functools
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from xtrainer.metrics import DeviceMetrics, MetricLayout
from xtrainer.parallel import BatchLayout, replicate
from xtrainer.state import TrainState
from xtrainer.step.flat import Flat, Form, whole
from xtrainer.step.programs import CompileFn, Programs, spec_of
from xtrainer.step.signals import SignalPlacer
from xtrainer.types import BatchLike, PyTree

Program = Callable[..., Any]

_WINDOWS = 16
"""Empty windows that are made in one call, which takes hardly longer than for one."""


class PlacedBatch(NamedTuple):
    """A batch that a compiled step can take.

    Attributes:
        data: The user's pytree of global arrays, or of host arrays where a process is alone.
        row_mask: bool ``(rows,)``, False for padding.
        rows: Rows including padding, those of all processes.
        examples: Rows without padding; of several processes, as if all had given as many as this.
        kind: The same object for batches of one structure, shape and dtype; None: not known.
    """

    data: BatchLike
    row_mask: jax.Array
    rows: int
    examples: int
    kind: object = None


class Executor(abc.ABC):
    """Base of the two executors: the layout, the programs, the calls, new windows.

    Args:
        name: Of the step.
        metric_layout: Of the step's metrics.
        state_shardings: A sharding per leaf of the state.
        layout: Mesh and batch axes.
        debug: Leave the step uncompiled.
        compile_program: Compiles what was lowered, such as by way of a cache.

    Attributes:
        programs: What was compiled.
    """

    def __init__(
        self,
        name: str,
        metric_layout: MetricLayout,
        state_shardings: Any,
        layout: BatchLayout,
        debug: bool,
        compile_program: CompileFn | None,
    ) -> None:
        self.programs = Programs(name, compile_program)
        self._state_shardings = state_shardings
        self._layout = layout
        self._debug = debug
        self._signals = SignalPlacer(layout.mesh) if jax.process_count() > 1 else None
        self._by_kind: dict[Hashable, Program] = {}
        self._functions: dict[Hashable, Any] = {}
        with jax.ensure_compile_time_eval():
            self._zeros = jax.tree.map(np.array, DeviceMetrics.zeros(metric_layout))
        self._window_form = Form(self._zeros)
        self._state_form: Any = None  # a Form, known when a state is; before that none is traced
        self._make_windows: Program | None = None
        self._windows: list[DeviceMetrics] = []

    def __call__(
        self,
        state: TrainState | Flat,
        batch: PlacedBatch,
        window: DeviceMetrics | Flat,
        bits: int = 0,
    ) -> Any:
        """Takes one step; see the executors for what it returns.

        ``bits`` is what this process says to the others, see ``xtrainer.step.signals``. A state
        that is flat, see :meth:`flatten`, gives flat results.

        Raises:
            StepError: If an argument was donated before, lies on other devices than it should, or
                has other leaves than it should.
        """
        program = self._by_kind.get(batch.kind)
        if program is None:
            program = self._find(state, batch, window, bits)
        if self._debug:
            sent = () if self._signals is None else (self._signals(bits),)
            return program(whole(state), batch.data, batch.row_mask, whole(window), *sent)
        try:
            leaves = state.leaves if type(state) is Flat else self.flatten(state).leaves
            sums = window.leaves if type(window) is Flat else self._window_form.flatten(window)
            if self._signals is None:
                results = program(leaves, batch.data, batch.row_mask, sums)
            else:
                sent = self._signals(bits)
                results = program(leaves, batch.data, batch.row_mask, sums, sent)
        except (TypeError, ValueError, RuntimeError) as error:
            named = self._named(state, batch, window, bits)
            results = self._call_mended(named, batch.rows, 1, error)
        results = self._named_results(results)
        return results if type(state) is Flat else tuple(whole(result) for result in results)

    def flatten(self, state: TrainState | Flat) -> Any:
        """Returns a state as the calls take it with the least work; as it is where uncompiled."""
        if self._debug or type(state) is Flat:
            return state
        state = self._part(state)
        if self._state_form is None:
            self._state_form = Form(state)
        return Flat(self._state_form, self._state_form.flatten(state))

    def _part(self, state: Any) -> Any:
        """Returns the part of a state, or of a tree like it, that the step is given."""
        return state

    def new_window(self) -> DeviceMetrics:
        """Returns an empty window on the devices."""
        if self._debug:
            # A copy: on the CPU a device array may share memory with the host array it came from.
            return replicate(jax.tree.map(np.copy, self._zeros), self._layout.mesh)
        if self._make_windows is None:
            zeros = lambda: [jax.tree.map(jnp.asarray, self._zeros)] * _WINDOWS  # noqa: E731
            make = jax.jit(zeros, out_shardings=self._layout.replicated)
            self._make_windows = make.lower().compile()
        if not self._windows:
            self._windows = self._make_windows()
        return self._windows.pop()

    def ahead(
        self, state: TrainState, data: BatchLike, steps: int = 1
    ) -> Future[jax.stages.Compiled] | None:
        """Begins to compile the program for a batch in a thread; nothing is computed.

        Args:
            state: Arrays or ``jax.ShapeDtypeStruct``s.
            data: The global batch, or its shapes.
            steps: How many steps a call takes.

        Returns:
            The program when it is there; None where nothing is compiled.
        """
        if self._debug:
            return None
        rows, arguments = self._specs(state, data, steps)
        key = program_key(arguments["batch"], steps)
        return self.programs.ahead(key, self._function(rows, steps), arguments)

    def lower(self, state: TrainState, data: BatchLike, steps: int = 1) -> jax.stages.Lowered:
        """Returns the step for a batch, lowered and not compiled; nothing is computed.

        Args:
            state: Arrays or ``jax.ShapeDtypeStruct``s.
            data: The global batch, or its shapes.
            steps: How many steps a call takes.
        """
        rows, arguments = self._specs(state, data, steps)
        return self._function(rows, steps).lower(*arguments.values())

    @abc.abstractmethod
    def _make_function(self, rows: int, steps: int) -> tuple[Program, Any, Any]:
        """Returns the function for a shape, the shardings of its flat results and what it takes."""

    @abc.abstractmethod
    def _flat_results(self, results: Any) -> Any:
        """Returns the results of a function with trees as the lists of their leaves."""

    @abc.abstractmethod
    def _named_results(self, results: Any) -> Any:
        """Returns the results of a program with the lists as flat trees."""

    def _function(self, rows: int, steps: int) -> "_FlatFunction":
        key = (rows, steps)
        if key not in self._functions:
            function, outputs, donated = self._make_function(rows, steps)
            batch = self._sharding(rows, steps)
            inputs = (jax.tree.leaves(self._state_shardings), batch, batch, self._layout.replicated)
            if self._signals is not None:
                inputs = (*inputs, self._stacked(self._signals.sharding, steps))

            @functools.wraps(function)
            def flat(state: Any, data: BatchLike, mask: Any, sums: Any, *sent: Any) -> Any:
                window = self._window_form.unflatten(sums)
                results = function(self._unflatten(state), data, mask, window, *sent)
                return self._flat_results(results)

            jitted = jax.jit(
                flat, in_shardings=inputs, out_shardings=outputs, donate_argnums=donated
            )
            self._functions[key] = _FlatFunction(jitted, self._flat_arguments)
        return self._functions[key]

    def _unflatten(self, leaves: list[Any]) -> Any:
        return self._state_form.unflatten(leaves)

    def _flat_arguments(self, state: Any, data: Any, mask: Any, window: Any, *sent: Any) -> Any:
        window = self._window_form.flatten(whole(window))
        return self.flatten(state).leaves, data, mask, window, *sent

    def _find(self, state: Any, batch: PlacedBatch, window: Any, bits: int) -> Program:
        if self._debug:
            program = self._make_function(batch.rows, 1)[0]
        else:
            named = self._named(state, batch, window, bits)
            function = self._function(batch.rows, 1)
            program = self.programs.get(program_key(batch.data, 1), function, named)
        if batch.kind is not None:
            self._by_kind[batch.kind] = program
        return program

    def _call_mended(
        self, arguments: dict[str, Any], rows: int, steps: int, error: Exception
    ) -> Any:
        """Calls a program for arguments that the one of their batch has refused."""
        key = program_key(arguments["batch"], steps)
        program = self.programs.mend(key, self._function(rows, steps), arguments, error)
        self._by_kind.clear()
        return program(*self._flat_arguments(*arguments.values()))

    def _named(self, state: Any, batch: PlacedBatch, window: Any, bits: int) -> dict[str, Any]:
        named = {
            "state": self._part(whole(state)),
            "batch": batch.data,
            "row_mask": batch.row_mask,
            "metrics": whole(window),
        }
        return named if self._signals is None else {**named, "signals": self._signals(bits)}

    def _specs(self, state: TrainState, data: BatchLike, steps: int) -> tuple[int, dict[str, Any]]:
        """Returns the rows of a batch and the shapes of all arguments for ``steps`` of them."""
        rows = jax.tree.leaves(data)[0].shape[0]
        lead = () if steps == 1 else (steps,)
        place, whole = self._sharding(rows, steps), self._layout.replicated

        def spec(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            dtype = jax.dtypes.canonicalize_dtype(dtype)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        def placed(x: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
            return x.update(sharding=sharding)  # wherever it lies now, a step takes it there

        named = {
            "state": jax.tree.map(placed, spec_of(self._part(state)), self._state_shardings),
            "batch": jax.tree.map(lambda x: spec((*lead, *x.shape), x.dtype, place), data),
            "row_mask": spec((*lead, rows), bool, place),
            "metrics": jax.tree.map(lambda x: spec(x.shape, x.dtype, whole), self._zeros),
        }
        if self._signals is not None:
            sent = self._stacked(self._signals.sharding, steps)
            named["signals"] = spec((*lead, self._layout.mesh.size), np.int32, sent)
        return rows, named

    def _sharding(self, rows: int, steps: int) -> NamedSharding:
        return self._stacked(self._layout.sharding(rows), steps)

    def _stacked(self, sharding: NamedSharding, steps: int) -> NamedSharding:
        """Returns the sharding of several arrays along a new first axis; of one as it is."""
        if steps == 1:
            return sharding
        return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


class _FlatFunction(NamedTuple):
    """A jitted function of flat arguments that is lowered for whole ones."""

    jitted: Any
    flatten: Callable[..., Any]

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Returns the function lowered for arguments or their shapes."""
        return self.jitted.lower(*self.flatten(*arguments))


def program_key(data: PyTree, steps: int) -> Hashable:
    """Returns what is equal for batches, or stacks of ``steps`` of them, that one program takes."""
    leaves, structure = jax.tree.flatten(data)
    shapes = tuple((leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves)
    return structure, shapes, steps
